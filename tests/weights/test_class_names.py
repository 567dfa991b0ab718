"""The names of ImageNet-1K's classes, against timm's and TFDS's tables."""

import re
from pathlib import Path

import tensorflow_datasets as tfds
from oracles import timm

from convnext_jax.weights.class_names import imagenet_classes, readable

# Those whose first word another class has too, and the corgi that is not a cardigan.
TOLD_APART = {
    "crane (bird)": "wading bird",
    "crane (machine)": "lifts and moves heavy objects",
    "tank suit": "bathing suit",
    "Pembroke Welsh corgi": "corgi",
    "Cardigan Welsh corgi": "corgi",
}


def test_labels_are_in_the_order_of_timm_and_tfds():
    info = timm.data.ImageNetInfo("imagenet-1k")
    tfds_labels = Path(tfds.__file__).parent / "datasets/imagenet2012/labels.txt"
    assert list(imagenet_classes()) == info.label_names() == tfds_labels.read_text().split()


def test_names_mean_what_timm_says():
    info = timm.data.ImageNetInfo("imagenet-1k")
    for wordnet_id, name in imagenet_classes().items():
        words, _, meaning = info.label_name_to_description(wordnet_id, detailed=True).partition(":")
        if name in TOLD_APART:
            assert TOLD_APART[name] in meaning
            assert re.sub(r" \(.*\)", "", name) in words.split(", ")
        else:
            assert name == words.split(", ")[0]


def test_names_are_printable_and_no_two_are_alike():
    names = list(imagenet_classes().values())
    assert len({name.lower() for name in names}) == 1000
    assert all(name.isascii() and name.isprintable() and name == name.strip() for name in names)


def test_readable_names():
    assert readable(None, 1000) == tuple(imagenet_classes().values())
    assert readable(None, 10) is None
    # A subset of ImageNet, in an order of its own, and labels that are no WordNet ids.
    assert readable(["n01443537", "n01440764"], 2) == ("goldfish", "tench")
    assert readable(["cat", "n00000000"], 2) == ("cat", "n00000000")
