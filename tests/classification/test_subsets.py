"""Test sets of some of ImageNet's classes, and those with several labels an image."""

import dataclasses
import json
import types
from importlib import resources

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.synthetic import Odd
from oracles import timm
from PIL import Image

from convnext_jax import check, create_model, evaluate, load, save_pretrained
from convnext_jax.builders import build_run
from convnext_jax.classification.preprocess import Preprocess
from convnext_jax.config import from_dict
from convnext_jax.data.imagenet_subsets import IMAGENET_A, IMAGENET_R
from convnext_jax.data.normalize import normalize
from convnext_jax.data.relabelled import relabelled
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError
from convnext_jax.models.variants import Preprocessing
from convnext_jax.training.stopwatch import Stopwatch

SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "kernel_size": 3}
SIZE = 32


class ImagenetA(Odd, skip_registration=True):
    """The real one's name and features."""


class Imagenet2012Real(Odd, skip_registration=True):
    """The real one's name and features."""


class OtherReal(Odd, skip_registration=True):
    """The same features under a name that nobody knows."""


@pytest.mark.parametrize("letter, found", [("a", IMAGENET_A), ("r", IMAGENET_R)])
def test_the_classes_are_those_that_timm_lists(letter, found):
    listed = resources.files(timm.data) / "_info" / f"imagenet_{letter}_indices.txt"
    assert found == tuple(map(int, listed.read_text().split())) and len(found) == 200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of 1,000 classes that are far from equally likely."""
    folder = tmp_path_factory.mktemp("model") / "run"
    model = create_model("convnext_atto", 1000, **SMALL)
    rng = np.random.default_rng(0)
    model.head.kernel[...] = rng.normal(size=(8, 1000)).astype(np.float32)
    save_pretrained(
        model, folder, "convnext_atto", preprocessing=Preprocessing(input_size=SIZE), **SMALL
    )
    return folder


def test_the_likeliest_of_the_sets_own_classes_counts(run, tmp_path, capsys):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (40, 50, 60, 3), np.uint8)
    loaded = load(run)
    transform = Preprocess(loaded.preprocessing)
    seen = np.stack([transform(Image.fromarray(image)) for image in pixels])
    feeding = loaded.preprocessing
    logits = np.asarray(loaded.model(normalize(seen, feeding.mean, feeding.std)))
    own = logits[:, IMAGENET_A]
    order = np.argsort(-own, axis=1)
    # Of half of the images the label is the likeliest of these classes, of others the third.
    labels = np.array(IMAGENET_A)[order[np.arange(40), np.where(np.arange(40) < 20, 0, 2)]]
    examples = [
        {"image": image, "label": int(label), "file_name": f"{i}.png"}
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }
    ImagenetA(examples, features, tmp_path).download_and_prepare(file_format="array_record")
    command = ["--checkpoint", str(run), "--dataset", "imagenet_a", "--data_dir", str(tmp_path)]
    evaluate.main([*command, "--split", "train", "--batch_size", "16", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["top1"], found["top5"], found["num_examples"]) == (0.5, 1.0, 40)
    exact = np.log(np.exp(own).sum(1)) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    # Another program, in float32.
    assert found["loss"] == pytest.approx(exact.mean(), rel=1e-5)
    # Among all classes hardly any of these labels is the likeliest.
    assert np.mean(logits.argmax(1) == labels) < 0.4


def test_a_model_with_the_classes_in_another_order_has_its_own_labels_of_them():
    source = types.SimpleNamespace(
        **{"name": "x", "split": "test", "num_classes": 4, "class_names": tuple("abcd")},
        **{"num_files": 0, "notes": (), "among": (0, 3)},
    )
    again = relabelled(source, (2, 0, 3, 1))
    assert again.class_names == tuple("bdac") and again.among == (1, 2)
    assert {again.class_names[label] for label in again.among} == {"a", "d"}


LISTS = {
    "image": tfds.features.Image(encoding_format="png"),
    "original_label": tfds.features.ClassLabel(num_classes=1000),
    "real_label": tfds.features.Sequence(tfds.features.ClassLabel(num_classes=1000)),
    "file_name": tfds.features.Text(),
}
EXAMPLE = {
    "image": np.zeros((8, 8, 3), np.uint8),
    "original_label": 1,
    "real_label": [2, 3],
    "file_name": "a.png",
}


def test_lists_of_labels_are_read_where_they_are_known(tmp_path):
    builder = Imagenet2012Real([EXAMPLE, EXAMPLE | {"real_label": []}], LISTS, tmp_path)
    builder.download_and_prepare(file_format="array_record")
    source = open_source("imagenet2012_real", "train", tmp_path)
    assert source.lists and source.num_classes == 1000
    assert sorted(labels for _, labels in source) == [(), (2, 3)]
    swapped = relabelled(source, [0, 1, 3, 2, *range(4, 1000)])
    assert sorted(labels for _, labels in swapped) == [(), (3, 2)]


def test_several_labels_an_image_are_not_scored_by_another(tmp_path):
    OtherReal([EXAMPLE], LISTS, tmp_path).download_and_prepare(file_format="array_record")
    with pytest.raises(InputError, match=r"`real_label` has several, .*\(original_label\) may"):
        open_source("other_real", "train", tmp_path)


def test_lists_of_labels_are_not_trained_on(tmp_path):
    builder = Imagenet2012Real([EXAMPLE] * 8, LISTS, tmp_path)
    builder.download_and_prepare(file_format="array_record")
    config = from_dict(
        {"data": {"name": "imagenet2012_real", "dir": str(tmp_path), "global_batch": 8}}
        | {"model": {"name": "convnext_atto"}}
    )
    data = dataclasses.replace(config.data, train_split="train", eval_split="train")
    with pytest.raises(InputError, match="must have one class for each image, and has a list"):
        build_run(dataclasses.replace(config, data=data), Stopwatch())


def test_lists_of_labels_are_not_checked_for_training(tmp_path, capsys):
    builder = Imagenet2012Real([EXAMPLE] * 8, LISTS, tmp_path)
    builder.download_and_prepare(file_format="array_record")
    command = ["--config", "configs/imagenet1k.py:tiny", f"--config.data.dir={tmp_path}"]
    command += ["--config.data.name=imagenet2012_real", "--config.data.train_split=train"]
    with pytest.raises(SystemExit) as ended:
        check.main([*command, "--config.data.eval_split=train"])
    assert ended.value.code == 2
    assert "must have one class for each image, and has a list" in capsys.readouterr().err
