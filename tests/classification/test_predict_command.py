"""`python -m convnext_jax.predict` as users run it."""

import csv
import io
import json
import sys

import numpy as np
import pytest
from classification.small import FEEDING, NAMES, PHOTOGRAPHS, SPEC, model_with, save, small_params
from e2e import commands

from convnext_jax import predict
from convnext_jax.classification.predictor import Predictor

pytestmark = pytest.mark.usefixtures("programs_are_kept")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    arrays = {"params": small_params(1), "ema": small_params(0)}
    save(workdir, {3: (arrays, {"eval_ema_top1": 0.5})})
    return workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with three images in two places, an empty folder, and a text."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "inner" / "empty").mkdir(parents=True)
    PHOTOGRAPHS[0].save(folder / "b.JPG", "JPEG")
    PHOTOGRAPHS[1].save(folder / "inner" / "a.png")
    PHOTOGRAPHS[1].save(folder / "inner" / "ümlaut \udcff.Png", "PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder with a good image between two damaged ones."""
    folder = tmp_path_factory.mktemp("damaged")
    file = io.BytesIO()
    PHOTOGRAPHS[0].save(file, "JPEG")
    (folder / "a.jpg").write_bytes(file.getvalue()[:20000])
    (folder / "b.jpg").write_bytes(file.getvalue())
    (folder / "c.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected():
    """Predictions of the moving average, and embeddings, for both photographs."""
    predictor = Predictor(model_with(SPEC, small_params(0)), FEEDING, NAMES)
    return predictor.predict(PHOTOGRAPHS, 7), predictor.embed(PHOTOGRAPHS)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, workdir):
    cache = tmp_path_factory.mktemp("cache")
    env = commands.environment(cache, cache)

    def run(*arguments):
        program = [sys.executable, "-m", "convnext_jax.predict", "--checkpoint", str(workdir)]
        return commands.run([*program, *map(str, arguments)], env)

    return run


def test_table(run, workdir, pictures, expected):
    result = run(pictures, pictures / "inner" / "a.png", "--top", 2)
    assert result.returncode == 0 and result.stderr == ""
    header, *lines = result.stdout.splitlines()
    assert header == f"convnext_atto, step 3 of {workdir} (moving average):"
    assert [line for line in lines if not line.startswith(" ")] == [
        f"{pictures}/b.JPG",
        f"{pictures}/inner/a.png",
        f"{pictures}/inner/ümlaut \\udcff.Png",
        f"{pictures}/inner/a.png",
    ]
    png = expected[0][1]
    for start in (3, 6, 9):
        shown = [line.split() for line in lines[start + 1 : start + 3]]
        assert [name for _, name in shown] == list(png.names[:2])
        for (share, _), probability in zip(shown, png.probabilities, strict=False):
            assert float(share.removesuffix("%")) == pytest.approx(100 * probability, abs=0.006)


def test_json_and_a_table_with_damaged_images(run, damaged, pictures, expected, tmp_path):
    images, table = (damaged, pictures / "inner" / "a.png"), tmp_path / "table.csv"
    result = run(*images, "--json", "--top", 3, "--batch_size", 2, "--csv", table)
    assert result.returncode == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"error: {damaged}/a.jpg: it cannot be read: OSError: image file")
    assert errors[1] == f"error: {damaged}/c.jpg: it is no image of a kind that PIL knows"
    first, second, third, fourth = map(json.loads, result.stdout.splitlines())
    assert first == {"image": f"{damaged}/a.jpg", "error": errors[0].removeprefix("error: ")}
    assert third == {"image": f"{damaged}/c.jpg", "error": errors[1].removeprefix("error: ")}
    assert second["image"] == f"{damaged}/b.jpg" and len(second["classes"]) == 3
    assert fourth["image"] == f"{pictures}/inner/a.png"
    png = expected[0][1]
    assert [row["label"] for row in fourth["classes"]] == list(png.labels[:3])
    assert [row["name"] for row in fourth["classes"]] == list(png.names[:3])
    # On one device instead of eight: sums in another order.
    np.testing.assert_allclose(
        [row["probability"] for row in fourth["classes"]], png.probabilities[:3], rtol=1e-4
    )
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [r["image"] for r in (first, second, third, fourth)]
    assert rows[0]["error"] == first["error"] and rows[0]["class"] == ""
    assert rows[3]["error"] == "" and rows[3]["class_3"] == png.names[2]
    for found, end in zip(fourth["classes"], ("", "_2", "_3"), strict=True):
        assert float(rows[3][f"probability{end}"]) == pytest.approx(found["probability"], abs=1e-6)
    assert list(tmp_path.iterdir()) == [table]


def test_embeddings(run, damaged, pictures, expected, tmp_path):
    output = tmp_path / "vectors"  # NumPy would add an ending.
    output.write_text("what is replaced")
    result = run(pictures / "inner" / "a.png", damaged, "--output", output)
    assert result.returncode == 1
    assert result.stdout == f"{output}: embeddings of 2 images, 16 numbers each (moving average)\n"
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == [
        f" {damaged}/a.jpg",
        f" {damaged}/c.jpg",
    ]
    assert list(tmp_path.iterdir()) == [output]
    with np.load(output) as archive:
        assert set(archive) == {"embeddings", "paths", "failed", "errors"}
        assert archive["embeddings"].dtype == np.float32
        # As above.
        np.testing.assert_allclose(archive["embeddings"][0], expected[1][1], rtol=1e-4, atol=1e-5)
        assert archive["embeddings"].shape == (2, 16)
        paths = archive["paths"].tolist()
        assert paths == [f"{pictures}/inner/a.png", f"{damaged}/b.jpg"]
        assert archive["failed"].tolist() == [f"{damaged}/a.jpg", f"{damaged}/c.jpg"]
        assert archive["errors"][1].endswith("PIL knows")


def test_a_path_that_does_not_exist(run, pictures):
    result = run(pictures, pictures / "d.jpg")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: there is no file or folder {pictures}/d.jpg\n"


def refused(capsys, *arguments):
    """Runs the command in this process; returns its one line of complaint."""
    with pytest.raises(SystemExit) as stop:
        predict.main(list(map(str, arguments)))
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    return err


def test_other_input_that_cannot_be_used(capsys, workdir, pictures, tmp_path):
    checkpoint, picture = ("--checkpoint", workdir), pictures / "b.JPG"
    empty = pictures / "inner" / "empty"
    assert f"{empty} has no images (.avif, " in refused(capsys, *checkpoint, empty)
    for output in (tmp_path / "absent" / "x.npz", tmp_path):
        message = refused(capsys, *checkpoint, picture, "--output", output)
        assert f"`--output` (={output})" in message
    assert "no complete checkpoint" in refused(capsys, "--checkpoint", tmp_path, picture)
    assert "the step (=4)" in refused(capsys, *checkpoint, "--step", 4, picture)
    assert "`top` (=0)" in refused(capsys, *checkpoint, "--top", 0, picture)
    assert "is for models that detect" in refused(
        capsys, *checkpoint, "--least_score", 0.5, picture
    )
    assert "`batch_size` (=0)" in refused(capsys, *checkpoint, "--batch_size", 0, picture)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(capsys, monkeypatch, workdir, pictures, tmp_path):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    output = tmp_path / "x.npz"
    output.write_text("old")
    with pytest.raises(SystemExit) as stop:
        predict.main(
            ["--checkpoint", str(workdir), str(pictures / "b.JPG"), "--output", str(output)]
        )
    assert stop.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_text() == "old" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    "ema, seed",
    [
        (["--no-ema"], 1),
        ([], 0),
        pytest.param(["--ema"], 0, marks=pytest.mark.slow),  # weights/test_find.py has it
    ],
)
def test_which_parameters(ema, seed, capsys, workdir, pictures):
    predictor = Predictor(model_with(SPEC, small_params(seed)), FEEDING, NAMES)
    with pytest.raises(SystemExit) as stop:
        predict.main(
            ["--checkpoint", str(workdir), str(pictures / "inner" / "a.png"), "--json", *ema]
        )
    assert stop.value.code == 0
    (row, *_) = json.loads(capsys.readouterr().out)["classes"]
    (expected,) = predictor.predict([PHOTOGRAPHS[1]])
    assert row["name"] == expected.names[0]
    # The same programs on the same devices.
    assert row["probability"] == pytest.approx(expected.probabilities[0], rel=1e-6)


def test_the_average_and_the_last_parameters_differ(expected):
    raw = Predictor(model_with(SPEC, small_params(1)), FEEDING, NAMES).predict(PHOTOGRAPHS, 7)
    assert raw[1].probabilities != pytest.approx(expected[0][1].probabilities, rel=1e-2)
