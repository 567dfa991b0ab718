"""`python -m convnext_jax.export` as users run it, and what it leaves."""

import json
import subprocess
import sys

import numpy as np
import pytest
from classification.small import FEEDING, NAMES, PHOTOGRAPHS, SPEC, model_with, save, small_params

from convnext_jax.classification.predictor import Prediction, Predictor
from convnext_jax.export import __main__ as command

ALONE = (
    "import runpy, sys; sys.modules['convnext_jax'] = None; sys.modules['flax'] = None;"
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save(workdir, {3: ({"params": small_params(1), "ema": small_params(0)}, {})})
    return workdir


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    PHOTOGRAPHS[0].resize((333, 501)).save(path)
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize("flags", [[], ["--fold"]])
def test_the_folder_runs_by_itself_and_says_what_it_is(workdir, photo, tmp_path, capsys, flags):
    folder = tmp_path / "new" / "exported"
    assert run("--checkpoint", workdir, folder, *flags) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{folder}: convnext_atto, ") and "for cpu, cuda, tpu" in line
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json",
        "model.stablehlo",
        "run_stablehlo.py",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    about = json.loads((folder / "model.json").read_text())
    assert about["input"] == {
        "shape": ["n", 64, 64, 3],
        "dtype": "float32",
        "pixels": "0..255" if flags else "normalised",
    }
    assert about["output"] == {"shape": ["n", 7], "dtype": "float32"}
    assert about["class_names"] == list(NAMES) and about["parameters"] == "ema"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder / "run_stablehlo.py"), str(photo)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    model = model_with(SPEC, small_params(0))
    (ours,) = Predictor(model, FEEDING, NAMES).predictions([str(photo)], 5)
    assert isinstance(ours, Prediction)
    expected = [
        f"{photo}  {probability:.2%}  {name}"
        for probability, name in zip(ours.probabilities, ours.names, strict=True)
    ]
    assert done.stdout.splitlines() == expected


def test_another_size_and_dtype(workdir, tmp_path):
    folder = tmp_path / "exported"
    assert run("--checkpoint", workdir, folder, "--size", 48, "--dtype", "bfloat16") == 0
    about = json.loads((folder / "model.json").read_text())
    assert about["input"]["shape"] == ["n", 48, 48, 3] and about["dtype"] == "bfloat16"
    assert about["preprocessing"]["input_size"] == 48
    import jax

    exported = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    logits = np.asarray(exported.call(np.ones((2, 48, 48, 3), np.float32)))
    assert logits.shape == (2, 7) and logits.dtype == np.float32


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--formats", "onx"], "error: `--formats` (=onx) must be of stablehlo"),
        (["--size", "0"], "error: `--size` (=0) must be positive"),
        (["--size", "16"], "must be at least 32 pixels high and wide"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    workdir, tmp_path, capsys, flags, sentence
):
    assert run("--checkpoint", workdir, tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone(workdir, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("--checkpoint", workdir, tmp_path) == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert run("--checkpoint", workdir, tmp_path / "notes.txt") == 2
