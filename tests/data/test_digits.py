import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError

DIGITS = sklearn.datasets.load_digits()


def rows(source):
    """Row of each example in scikit-learn's arrays."""
    return [int(source._records[i]["index"]) for i in range(len(source))]


def test_pixels_and_labels_are_those_of_scikit_learn(data_dir):
    source = open_source("digits", "test", data_dir)
    assert source.class_names == tuple("0123456789")
    for i, row in enumerate(rows(source)):
        image, label = source[i]
        assert label == DIGITS.target[row]
        pixels = np.asarray(image)
        assert pixels.shape == (8, 8, 3)
        assert (pixels == pixels[..., :1]).all()
        # 0..16 to 0..255 and back: exact, as a step is 16 of our values.
        np.testing.assert_array_equal(np.round(pixels[..., 0] / 255 * 16), DIGITS.images[row])
        assert pixels.max() <= 255 and (DIGITS.images[row].max() < 16 or pixels.max() == 255)


def test_the_split_is_stratified_disjoint_and_whole(data_dir):
    train, test = (open_source("digits", split, data_dir) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert sorted(rows(train) + rows(test)) == list(range(1797))
    share = np.bincount(DIGITS.target[rows(test)]) / np.bincount(DIGITS.target)
    # A class has at least 174 examples: rounding its fifth moves it by less than 1/174.
    np.testing.assert_allclose(share, 0.2, atol=1 / 174)


def test_the_split_is_fixed(data_dir):
    """Published accuracies belong to these very examples."""
    test = rows(open_source("digits", "test", data_dir))
    assert sorted(test)[:10] == [21, 24, 28, 34, 35, 37, 39, 42, 45, 51]


def test_writing_them_prints_nothing_and_logs_once(tmp_path, capfd, caplog):
    with caplog.at_level(logging.INFO):
        open_source("digits", "train", tmp_path)
        open_source("digits", "train", tmp_path)
    ours = [r for r in caplog.records if r.name == "convnext_jax.data.digits"]
    assert [r.getMessage() for r in ours] == [
        f"wrote the `digits` dataset to {tmp_path / 'digits' / '1.0.0'}"
    ]
    assert capfd.readouterr() == ("", "")


def test_several_processes_at_once(tmp_path):
    code = (
        "import sys, time; from convnext_jax.data.sources import open_source;"
        "print('ready', flush=True); sys.stdin.readline();"
        f"source = open_source('digits', 'train', {str(tmp_path)!r});"
        "source[1436]; print(len(source))"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "1437\n"), err
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_process_that_is_killed_leaves_nothing_that_counts(tmp_path):
    code = (
        "import os, signal; from convnext_jax.data import digits, sources\n"
        "def killed(self, rows):\n"
        "    for n, example in enumerate(original(self, rows)):\n"
        "        if n == 300 and len(rows) < 400: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield example\n"
        "original = digits.Digits._generate_examples\n"
        "digits.Digits._generate_examples = killed\n"
        f"sources.open_source('digits', 'train', {str(tmp_path)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert any((tmp_path / "digits").iterdir())  # it had begun
    assert len(open_source("digits", "train", tmp_path)) == 1437


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=rf"^`data_dir` \(={file}.*\) must be .*Not a directory"):
        open_source("digits", "train", file)
