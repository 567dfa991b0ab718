"""`python -m convnext_jax.export` as users run it, and what it leaves."""

import json
import subprocess
import sys

import numpy as np
import pytest
from classification.small import FEEDING, NAMES, PHOTOGRAPHS, SPEC, model_with, save, small_params
from flax import nnx
from PIL import Image

from convnext_jax import predict as predict_command
from convnext_jax.classification.predictor import Prediction, Predictor
from convnext_jax.errors import InputError, RunError
from convnext_jax.export import __main__ as command
from convnext_jax.export.folder import require_free, write_folder
from convnext_jax.models.spec import ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.weights.save import save_pretrained

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


def run(*arguments, main=command.main):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def predict(*arguments):
    return run(*arguments, main=predict_command.main)


@pytest.fixture(scope="module")
def expected(photo):
    """What the model gives without being exported: the lines of the scripts."""
    (ours,) = Predictor(model_with(SPEC, small_params(0)), FEEDING, NAMES).predictions([photo], 5)
    assert isinstance(ours, Prediction)
    rows = zip(ours.probabilities, ours.names, strict=True)
    return [f"{photo}  {probability:.2%}  {name}" for probability, name in rows]


@pytest.mark.parametrize("flags", [[], ["--fold"]])
def test_the_folder_runs_by_itself_and_says_what_it_is(
    workdir, photo, expected, tmp_path, capsys, flags
):
    folder = tmp_path / "new" / "exported"
    assert run("--checkpoint", workdir, folder, "--formats", "stablehlo,onnx", *flags) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{folder.resolve()}: convnext_atto, ") and "model.onnx, 0." in line
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json",
        "model.onnx",
        "model.stablehlo",
        "run_onnx.py",
        "run_stablehlo.py",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    about = json.loads((folder / "model.json").read_text())
    pixels = "0..255" if flags else "normalised"
    assert about["input"] == {"size": 64, "dtype": "float32", "pixels": pixels}
    assert about["formats"]["stablehlo"]["input"] == ["n", 64, 64, 3]
    assert about["formats"]["stablehlo"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["formats"]["onnx"] == {
        "input": ["n", 3, 64, 64],
        "output": ["n", 7],
        "opset": 20,
    }
    assert about["class_names"] == list(NAMES) and about["parameters"] == "ema"
    for script in ("run_onnx.py", "run_stablehlo.py"):
        done = subprocess.run(
            [sys.executable, "-c", ALONE, str(folder / script), str(photo)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("runtime", ["onnx", "stablehlo"])
def test_predict_runs_what_was_exported(workdir, photo, tmp_path, capsys, runtime):
    folder = tmp_path / "exported"
    assert run("--checkpoint", workdir, folder, "--formats", runtime, "--fold") == 0
    capsys.readouterr()
    assert predict(photo, "--checkpoint", workdir, "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    # Three images: a batch is filled up to four.
    arguments = [photo] * 3 + ["--checkpoint", folder, "--runtime", runtime, "--json"]
    assert predict(*arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert row["parameters"] == ours["parameters"] == "ema"
        for found, expected in zip(row["classes"], ours["classes"], strict=True):
            assert found["label"] == expected["label"] and found["name"] == expected["name"]
            assert found["probability"] == pytest.approx(expected["probability"], abs=1e-6)


def test_predict_says_what_a_folder_lacks(workdir, photo, tmp_path, capsys):
    folder = tmp_path / "exported"
    assert run("--checkpoint", workdir, folder, "--formats", "onnx") == 0
    capsys.readouterr()
    for arguments, sentence in (
        (["--checkpoint", folder], "is an exported model: say `--runtime` onnx or stablehlo"),
        (
            ["--checkpoint", folder, "--runtime", "stablehlo"],
            "model.stablehlo, which is not there: write it with",
        ),
        (["--checkpoint", workdir, "--runtime", "onnx"], "model.onnx, which is not there"),
        (
            ["--checkpoint", folder, "--runtime", "onnx", "--output", tmp_path / "x.npz"],
            "`--output` is for embeddings, and ",
        ),
        *(
            (
                ["--checkpoint", folder, "--runtime", "onnx", *given],
                f"`{given[0]}` must not be given with `--runtime`",
            )
            for given in (["--step", "3"], ["--ema"], ["--cam", "x"])
        ),
        (
            ["--checkpoint", workdir, "--cam", "x", "--output", "y.npz"],
            "`--cam` and `--output` must not be given together",
        ),
    ):
        assert predict(photo, *arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    (folder / "model.onnx").write_bytes(b"damaged")
    assert predict(photo, "--checkpoint", folder, "--runtime", "onnx") == 2
    said = capsys.readouterr().err
    assert "model.onnx cannot be read: " in said and said.count("\n") == 1
    for text in ("{}", "[]", "not JSON"):
        (folder / "model.json").write_text(text)
        assert predict(photo, "--checkpoint", folder, "--runtime", "onnx") == 2
        assert "model.json must be as exporting wrote it" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_size_and_dtype(workdir, tmp_path, dtype):
    folder = tmp_path / "exported"
    assert run("--checkpoint", workdir, folder, "--size", 48, "--dtype", dtype) == 0
    about = json.loads((folder / "model.json").read_text())
    assert about["input"]["size"] == 48 and about["dtype"] == dtype
    assert about["preprocessing"]["input_size"] == 48
    import jax

    exported = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    logits = np.asarray(exported.call(np.ones((2, 48, 48, 3), np.float32)))
    assert logits.shape == (2, 7) and logits.dtype == np.float32


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--formats", "onx"], "error: `--formats` (=onx) must be of stablehlo, onnx"),
        (
            ["--formats", "onnx", "--dtype", "bfloat16"],
            "error: `--dtype` (=bfloat16) must be float32 or float16 for ONNX run-times",
        ),
        (["--formats", "onnx", "--size", "16"], "must be at least 32 pixels high and wide"),
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


def test_a_package_that_is_not_there_is_named(workdir, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run("--checkpoint", workdir, tmp_path / "out", "--formats", "onnx") == 2
    said = capsys.readouterr().err
    assert (
        "needs the package `onnx`, which is not installed (`pip install 'convnext_jax[onnx]'`, or"
        in said
    )
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert run("--checkpoint", workdir, tmp_path / "out", "--formats", "onnx") == 0
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert predict(photo, "--checkpoint", tmp_path / "out", "--runtime", "onnx") == 2
    assert "needs the package `onnxruntime`, which is not installed" in capsys.readouterr().err


def test_a_folder_with_files_is_left_alone(workdir, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("--checkpoint", workdir, tmp_path) == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert run("--checkpoint", workdir, tmp_path / "notes.txt") == 2
    assert run("--checkpoint", workdir, "gs://bucket/model") == 2
    assert "(=gs://bucket/model) must be a folder on a disk" in capsys.readouterr().err


def test_the_folder_that_one_is_in_and_links_to_folders(workdir, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", tmp_path / "link"):
        assert run("--checkpoint", workdir, place, "--formats", "onnx") == 0
    assert {p.parent.name for p in tmp_path.rglob("model.onnx")} == {"here", "there"}


@pytest.mark.parametrize("runtime", ["onnx", "stablehlo"])
def test_predict_segments_with_what_was_exported(photo, tmp_path, runtime, capsys):
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32), "kernel_size": 3}
    heads = {"decoder_channels": 8, "auxiliary_channels": 8}
    name, feeding = "upernet_convnext_atto", Preprocessing(input_size=64, crop_mode="window")
    model = ModelSpec(name, 5, sizes | heads).create(nnx.Rngs(0))
    save_pretrained(model, tmp_path / "run", name, preprocessing=feeding, **sizes, **heads)
    assert run("--checkpoint", tmp_path / "run", tmp_path / "out", "--formats", runtime) == 0
    flags = {"run": (), "out": ("--runtime", runtime)}
    for place, given in flags.items():
        output = tmp_path / f"masks_{place}"
        assert predict("--checkpoint", tmp_path / place, photo, "--output", output, *given) == 0
    capsys.readouterr()
    ours, theirs = (
        np.asarray(Image.open(tmp_path / f"masks_{place}" / "photo_labels.png")) for place in flags
    )
    assert ours.shape == (501, 333) and len(np.unique(ours)) > 1
    # Where two classes are as likely, rounding decides.
    assert (ours == theirs).mean() > 0.999


def test_into_a_folder_that_is_there_and_may_be_a_mounted_volume(tmp_path):
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    before = volume.stat().st_ino
    require_free(volume)
    write_folder(volume, {"model.onnx": b"weights", "model.json": {"a": 1}})
    # Another folder cannot take a mounted one's place.
    assert volume.stat().st_ino == before
    assert {path.name for path in volume.iterdir()} == {"lost+found", "model.onnx", "model.json"}
    assert json.loads((volume / "model.json").read_text()) == {"a": 1}
    with pytest.raises(InputError, match="must be a new or an empty folder"):
        require_free(volume)


def test_what_cannot_be_written_to_its_end_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        # The last name is that of no file.
        with pytest.raises(RunError, match="failed"):
            write_folder(tmp_path / name, {"model.onnx": b"weights", "no/model.json": "{}"})
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
