import subprocess
import sys

import pytest
from data import ilsvrc

from convnext_jax.data import prepare
from convnext_jax.data.sources import open_source


def run(capsys, *arguments):
    """Exit status, standard output and standard error of the command in this process."""
    status = prepare.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_prepared_dataset_is_left_as_it_is(imagenet, capsys):
    data_dir, archives = imagenet
    files = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
    status, out, err = run(capsys, "imagenet2012", f"--data_dir={data_dir}")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "imagenet2012 was already prepared:",
        f"  train: {len(archives.train)} examples",
        f"  validation: {len(archives.validation)} examples",
        f"  in {data_dir / 'imagenet2012' / '5.1.0'}",
    ]
    assert {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize("there", [[], [ilsvrc.TRAIN_ARCHIVE], None])
def test_missing_archives_are_named(tmp_path, capsys, there):
    for name in there or []:
        (tmp_path / name).touch()
    manual_dir = [] if there is None else [f"--manual_dir={tmp_path}"]
    status, out, err = run(capsys, "imagenet2012", f"--data_dir={tmp_path}", *manual_dir)
    assert (status, out) == (2, "")
    assert err.startswith("error: `--manual_dir` ")
    assert err.count("\n") == 1
    missing = err.partition("missing: ")[2]
    assert (ilsvrc.TRAIN_ARCHIVE in missing) == (not there)
    assert ilsvrc.VALIDATION_ARCHIVE in missing
    assert "https://image-net.org/download-images" in err


def test_overwriting_and_killed_while_overwriting(tmp_path, capsys):
    arguments = ["digits", f"--data_dir={tmp_path}"]
    assert run(capsys, *arguments)[0] == 0
    version = tmp_path / "digits" / "1.0.0"
    (version / "mark").touch()
    status, out, _ = run(capsys, *arguments, "--overwrite")
    assert status == 0
    assert "digits is prepared:\n  train: 1437 examples\n  test: 360 examples\n" in out
    assert not (version / "mark").exists()

    code = (
        "import os, signal; from convnext_jax.data import digits, prepare\n"
        "digits.Digits._generate_examples = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare.main({[*arguments, '--overwrite']!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert not version.exists()
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    assert "belongs to a run that is going on or was killed" in out
    assert len(open_source("digits", "train", tmp_path)) == 1437


def test_overwriting_that_fails_keeps_what_was_there(tmp_path, capsys, monkeypatch):
    arguments = ["digits", f"--data_dir={tmp_path}"]
    assert run(capsys, *arguments)[0] == 0

    def fails(*_):
        raise RuntimeError("no\nspace")

    monkeypatch.setattr("convnext_jax.data.digits.Digits._generate_examples", fails)
    status, _, err = run(capsys, *arguments, "--overwrite")
    assert status == 2
    assert "error: dataset `digits` cannot be prepared in " in err
    assert "RuntimeError: no space\n" in err
    assert len(open_source("digits", "train", tmp_path)) == 1437


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["imagnet2012"],
            "dataset `imagnet2012` must be `ade20k`, `coco2017`, `digit_scenes`, `digits`,"
            " `folder`, `imagenet22k` or the name of a TFDS dataset; did you mean imagenet2012",
        ),
        (["foldr"], "; did you mean folder"),
        (["folder"], "dataset `folder` cannot be prepared and has no versions: as `folder`, "),
        (["folder:1.0.0"], "training reads the images below `data.dir` as they are"),
        (["digits:8.0.0"], "dataset `digits:8.0.0` cannot be opened: "),
        (["mnist/nothing"], "dataset `mnist/nothing` cannot be opened: "),
        (["digits", "--convert"], "`--convert` adds array_record files to a prepared dataset"),
        (["resisc45"], "dataset `resisc45` needs `--manual_dir`: "),
    ],
)
def test_what_cannot_be_prepared_is_one_sentence(tmp_path, capsys, arguments, message):
    status, out, err = run(capsys, *arguments, f"--data_dir={tmp_path}")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_something_unreadable_is_not_replaced_unasked(tmp_path, capsys):
    file = tmp_path / "digits" / "1.0.0" / "precious"
    file.parent.mkdir(parents=True)
    file.touch()
    status, _, err = run(capsys, "digits", f"--data_dir={tmp_path}")
    assert status == 2
    assert "must not exist before `digits` is prepared there" in err
    assert file.exists()
