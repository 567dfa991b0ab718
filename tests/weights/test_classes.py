"""Classes of a dataset and of weights are the same by their names, not by their places."""

import re

import pytest
from oracles import timm

from convnext_jax.data import ade20k_classes
from convnext_jax.errors import InputError
from convnext_jax.weights.class_names import imagenet_classes
from convnext_jax.weights.classes import canonical, match_classes

IDS = tuple(imagenet_classes())
ENGLISH = tuple(imagenet_classes().values())
OF = ("dataset `folder`", "the checkpoint runs/x")


def match(dataset, model):
    return match_classes(dataset, model, len(dataset or model), OF)


def synsets():
    """ImageNet's classes as Hugging Face's configs and timm call them: all words of a synset."""
    info = timm.data.ImageNetInfo("imagenet-1k")
    return tuple(info.label_name_to_description(wordnet_id) for wordnet_id in IDS)


@pytest.mark.parametrize("names", [("a", "b", "c"), tuple("0123456789"), IDS, ENGLISH])
def test_equal_names_need_no_word(names):
    found = match(names, names)
    assert found.places is None and found.remark == ""


@pytest.mark.parametrize(
    "dataset, model, places",
    [
        (("b", "c", "a"), ("a", "b", "c"), (1, 2, 0)),
        # As folders sort numbers.
        (("0", "1", "10", "11", *"23456789"), tuple(map(str, range(12))), None),
        (("n01443537", "n01440764"), ("tench", "goldfish"), (1, 0)),
        (("Tinca tinca, tench", "goldfish"), ("n01443537", "n01440764"), (1, 0)),
        (tuple(reversed(IDS)), ENGLISH, tuple(reversed(range(1000)))),
    ],
)
def test_the_same_names_in_another_order_are_matched(dataset, model, places):
    found = match(dataset, model)
    assert found.places is not None and "another order" in found.remark
    assert all(
        canonical(model)[place] == name
        for name, place in zip(canonical(dataset), found.places, strict=True)
    )
    assert places is None or found.places == places


def test_imagenet_is_imagenet_whatever_its_classes_are_called():
    for dataset in (IDS, ENGLISH, synsets()):
        for model in (IDS, ENGLISH, synsets(), None):
            found = match(dataset, model)
            assert found.places is None and found.remark == ""


def test_imagenet_sorted_by_other_names_is_matched_by_name():
    found = match(tuple(sorted(ENGLISH)), None)
    assert found.places is not None
    assert [ENGLISH[place] for place in found.places] == sorted(ENGLISH)


@pytest.mark.parametrize(
    "dataset, model, words",
    [
        (None, ("a", "b"), "dataset `folder` has no names"),
        (("a", "b"), None, "the checkpoint runs/x has no names"),
        (("n01440764", "n01443537"), ("cat", "dog"), "cannot be compared"),
        (("cat", "dog"), ("0", "1"), "cannot be compared"),
        (tuple(f"class {i}" for i in range(1000)), None, "cannot be compared"),
    ],
)
def test_names_that_say_nothing_leave_the_order_and_are_named(dataset, model, words):
    found = match(dataset, model)
    assert found.places is None
    assert "matched by their order" in found.remark and words in found.remark


@pytest.mark.parametrize(
    "dataset, model, words",
    [
        (
            ("temple", "three", "zebra"),
            ("flower", "temple", "three"),
            "has 3 (`temple`, `three`, `zebra`); the checkpoint runs/x has 3 (`flower`, `temple`,"
            " `three`); only dataset `folder` has `zebra`; only the checkpoint runs/x has `flower`",
        ),
        (("a", "a"), ("a", "b"), "only the checkpoint runs/x has `b`"),
        (IDS, (*ENGLISH[:-1], "unicorn"), "has 1000 (`n01440764`, "),
        (IDS, (*ENGLISH[:-1], "unicorn"), "only the checkpoint runs/x has `unicorn`"),
        (("n01440764", "n01443537"), ("tench", "dog"), "has `n01443537`; only"),
    ],
)
def test_other_classes_are_refused_and_both_lists_named(dataset, model, words):
    with pytest.raises(InputError, match=re.escape(words)) as refused:
        match(dataset, model)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("names", [None, [f"n{label:08d}" for label in range(1, 13)]])
def test_folders_called_by_numbers_are_those_labels(names):
    numbers = tuple(sorted(str(label) for label in range(12)))  # 0, 1, 10, 11, 2, ...
    found = match_classes(numbers, names, 12, OF)
    assert found.places == tuple(map(int, numbers)) and "by their numbers" in found.remark
    if names is not None:
        found = match_classes(names, numbers, 12, OF)
        assert found.places is not None
        assert [numbers[place] for place in found.places] == [str(label) for label in range(12)]


def test_ade20ks_classes_go_by_other_words_too():
    """mmsegmentation's list has a later synonym of one class; so few are no other dataset."""
    other = list(ade20k_classes.CLASSES)
    other[89] = "television receiver"
    found = match_classes(ade20k_classes.CLASSES, tuple(other), 150, ("dataset `ade20k`", "x.pth"))
    assert found.places is None
    assert found.remark.endswith(
        f"x.pth has other words for {ade20k_classes.CLASSES[89]} / television receiver"
    )
    other[20:40] = [f"thing {i}" for i in range(20)]
    with pytest.raises(InputError, match="thing 0"):
        match_classes(ade20k_classes.CLASSES, tuple(other), 150, ("dataset `ade20k`", "x.pth"))
