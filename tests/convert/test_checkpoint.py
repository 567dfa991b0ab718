"""From PyTorch to a checkpoint of ours, and on from there."""

import json

import numpy as np
import pytest
import sklearn.metrics
from oracles import timm, torch
from originals import randomised, torch_images
from random_models import random_images

from convnext_jax import evaluate
from convnext_jax.checkpointing.reading import read_description
from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.convert.__main__ import main
from convnext_jax.weights.load import load_pretrained


@pytest.fixture(scope="module")
def atto():
    return randomised(timm.create_model("convnext_atto", num_classes=10))


@pytest.fixture(scope="module")
def checkpoint(atto, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    torch.save(atto.state_dict(), folder / "atto.pth")
    main([str(folder / "atto.pth"), str(folder / "run")])
    return folder / "run"


def test_what_a_converted_checkpoint_says(checkpoint):
    assert completed_steps(checkpoint / "checkpoints") == [0]
    described = read_description(checkpoint / "checkpoints", 0)
    assert described["model"] == {"name": "convnext_atto", "overrides": {}}
    assert described["num_classes"] == 10
    assert described["preprocessing"]["input_size"] == 224
    assert described["source"].endswith("atto.pth") and described["format"] == "timm"
    (digest,) = described["sha256"].values()
    assert len(digest) == 64


def test_there_and_back_is_bit_identical(atto, checkpoint, tmp_path, capsys):
    main([str(checkpoint), str(tmp_path / "back.pth"), "--to", "timm"])
    found = torch.load(tmp_path / "back.pth", weights_only=True)
    expected = atto.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert "in the format convnext_jax" in capsys.readouterr().out


def test_it_computes_what_the_original_does(atto, checkpoint):
    images = random_images(2, 64, 64, 3)
    with torch.no_grad():
        expected = atto(torch_images(images)).numpy()
    found = np.asarray(load_pretrained(checkpoint)(images))
    # Both float32; sums in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_it_is_evaluated_like_a_run(checkpoint, tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--data_dir", str(tmp_path), "--json"]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(arguments)
    assert stopped.value.code == 2
    assert "`--dataset` must be given" in capsys.readouterr().err
    table = tmp_path / "confusion.csv"
    some = ("--dataset", "digits", "--split", "test[:56]", "--batch_size", "16")
    evaluate.main([*arguments, *some, "--confusion", str(table)])
    results = json.loads(capsys.readouterr().out)
    assert results["num_examples"] == 56
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    assert header == ["class", "examples", "accuracy", "precision", "f1", *map(str, range(10))]
    counts = np.array([[int(x) for x in row[5:]] for row in rows])
    assert counts.sum() == 56 and np.trace(counts) == round(results["top1"] * 56)
    # scikit-learn's, from an example for each count.
    labels, found = np.repeat(np.indices((10, 10)).reshape(2, 100), counts.ravel(), axis=1)
    precision, recall, f1, examples = sklearn.metrics.precision_recall_fscore_support(
        labels, found, labels=range(10), zero_division=np.nan
    )
    for row, *expected in zip(rows, examples, recall, precision, f1, strict=True):
        scores = [float(value) if value else np.nan for value in row[1:5]]
        np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=0)
    macro = sklearn.metrics.f1_score(labels, found, average="macro")
    assert results["macro_f1"] == pytest.approx(macro, abs=1e-12)
    assert results["mean_class_accuracy"] == pytest.approx(recall.mean(), abs=1e-12)


def test_output_that_is_a_checkpoint_already_is_not_touched(checkpoint, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(checkpoint.parent / "atto.pth"), str(checkpoint)])
    assert stopped.value.code == 2
    assert "must not hold a checkpoint already" in capsys.readouterr().err


def test_options_that_a_checkpoint_of_ours_has_no_use_for(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "x.pth"), "--to", "timm", "--model", "convnext_atto"])
    assert "`--model` must not be given" in capsys.readouterr().err
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_other_input_channels(channels, checkpoint, tmp_path):
    file = checkpoint.parent / "atto.pth"
    main([str(file), str(tmp_path / "run"), "--in_channels", str(channels)])
    model = load_pretrained(tmp_path / "run")
    assert model(random_images(1, 64, 64, channels)).shape == (1, 10)
    if channels == 1:
        # A grey image gives the same answer in one channel as in three.
        grey = random_images(1, 64, 64, 1)
        expected = load_pretrained(checkpoint)(np.repeat(grey, 3, axis=3))
        difference = np.abs(np.asarray(model(grey) - expected)).max()
        assert difference < 1e-4 * np.abs(np.asarray(expected)).max()  # one sum, not three
