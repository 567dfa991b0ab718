"""How commands read their command lines."""

import subprocess
import sys

import pytest

from convnext_jax import evaluate, main, plan, predict
from convnext_jax.config import all_keys
from convnext_jax.data import prepare


@pytest.mark.parametrize(
    "parse, given, name, value",
    [
        (evaluate.parse_arguments, ["--checkpoint", "x", "--data-dir", "d"], "data_dir", "d"),
        (evaluate.parse_arguments, ["--checkpoint=x", "--batch-size=3"], "batch_size", 3),
        (predict.parse_arguments, ["--checkpoint", "x", "a-b.jpg", "--no-ema"], "ema", False),
        (
            predict.parse_arguments,
            ["--checkpoint", "x", "--", "--top-k.jpg"],
            "images",
            ["--top-k.jpg"],
        ),
    ],
)
def test_hyphens_are_as_good_as_underscores(parse, given, name, value):
    assert getattr(parse(given), name) == value


def test_hyphens_in_plan():
    given = ["--config", "configs/digits.py", "--topology", "v5e:2x2", "--per-device-batch", "4"]
    assert plan.parse_arguments(given)[0].per_device_batch == 4


@pytest.mark.parametrize(
    "parse",
    [evaluate.parse_arguments, predict.parse_arguments, plan.parse_arguments, prepare.main],
)
def test_flags_are_spelled_one_way_and_not_abbreviated(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    words = capsys.readouterr().out.replace("--no-", "--no_").split()
    flags = {word.strip("[],") for word in words if word.strip("[").startswith("--")}
    assert len(flags) > 2 and not [flag for flag in flags if "-" in flag[2:]], flags
    with pytest.raises(SystemExit):
        parse(["--hel"])


@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--num_epochs=3", "`--num_epochs` is not a flag; did you mean `--config.num_epochs`?"),
        ("--lr", "`--lr` is not a flag; did you mean `--config.optim.lr`?"),
        ("--optim.lr=1", "did you mean `--config.optim.lr`?"),
        ("--name=x", "`--config.model.name` or `--config.data.name`?"),
    ],
)
def test_keys_without_their_prefix(flag, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main.parse_flags(["main", "--config", "configs/digits.py", flag])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_no_key_is_called_as_a_flag_of_main():
    assert not {"config", "workdir", "help"} & {key.rpartition(".")[2] for key in all_keys()}


@pytest.mark.parametrize(
    "command, package", [("main", "ml_collections"), ("predict", "PIL"), ("evaluate", "grain")]
)
def test_a_package_that_is_not_installed_is_a_sentence(command, package):
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['x', '--help'];"
        f"runpy.run_module('convnext_jax.{command}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"needs the package `{package}`, which is not installed (`pip install" in done.stderr
