"""Detectors that start from weights of detectors and of classifiers, and from nothing else."""

import dataclasses

import jax
import numpy as np
import pytest
from classification.small import FEEDING, save
from flax import nnx
from random_models import random_params

from convnext_jax import builders, sharding
from convnext_jax.config import Config, ModelConfig
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelSpec, batch_stats_of, params_of
from convnext_jax.starting import find_start
from convnext_jax.tree import flatten_with_names
from convnext_jax.weights.load import load, load_pretrained

SIZES = {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}
WIDTHS = {"fpn_channels": 8, "head_features": 12}
CLASSES = ("cat", "dog", "bird")
CLASSIFIER = ModelSpec("convnext_tiny", 7, SIZES)
DETECTOR = ModelSpec("cascade_mask_rcnn_convnext_tiny", 3, {**SIZES, **WIDTHS, "detections": 9})
UPERNET = ModelSpec(
    "upernet_convnext_tiny", 3, {**SIZES, "decoder_channels": 8, "auxiliary_channels": 8}
)
# Of those at the end of the heads, which are for the classes.
LAST = ("/fc_cls/", "/fc_reg/", "/conv_logits/")


def values(spec, seed):
    rng = np.random.default_rng(seed + 1)
    stats = jax.tree.map(
        lambda x: rng.random(x.shape, np.float32) + 0.5, spec.abstract_batch_stats()
    )
    return random_params(spec.abstract_params(), seed), stats


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Checkpoints of three tasks."""
    root = tmp_path_factory.mktemp("checkpoints")
    for spec in (CLASSIFIER, DETECTOR, UPERNET):
        params, stats = values(spec, 3)
        items = {"params": params} | ({"batch_stats": stats} if stats else {})
        names = CLASSES if spec.num_classes == 3 else None
        (root / spec.name).mkdir()
        save(root / spec.name, {1: (items, None)}, spec, FEEDING, names)
    return root


def arrays(model):
    return flatten_with_names(params_of(model)) | flatten_with_names(batch_stats_of(model))


@pytest.fixture(scope="module")
def trained():
    params, stats = values(DETECTOR, 3)
    return flatten_with_names(params) | flatten_with_names(stats)


def test_a_detector_is_all_of_its_checkpoint(places, trained):
    found = load(places / DETECTOR.name)
    assert found.spec.name == DETECTOR.name and found.class_names == CLASSES
    assert found.model.roi_head.selection.detections == 9
    loaded = arrays(found.model)
    assert loaded.keys() == trained.keys()
    for name, array in trained.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert load_pretrained(places / DETECTOR.name, detections=4).roi_head.selection.detections == 4


def test_for_other_classes_the_last_layers_are_random(places, trained):
    found = load(places / DETECTOR.name, 5)
    assert found.class_names is None
    loaded = arrays(found.model)
    for name, array in trained.items():
        if any(part in name for part in LAST):
            assert loaded[name].shape != array.shape, name
            assert np.any(loaded[name]) == name.endswith("kernel")
        else:
            np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    # Others of the same number.
    again = arrays(load_pretrained(places / DETECTOR.name, head=False))
    name = "roi_head/bbox_head/1/fc_reg/kernel"
    assert again[name].shape == trained[name].shape and np.any(again[name] != trained[name])


def initial(place):
    """What a run of `DETECTOR` starts with."""
    model = ModelConfig(name=DETECTOR.name, **SIZES)
    config = dataclasses.replace(Config(), init_from=str(place), model=model)
    weights = find_start(config, None).weights
    params, stats = builders.initial_variables(config, DETECTOR, sharding.create_mesh(), weights)
    return flatten_with_names(params), flatten_with_names(stats)


def test_a_run_starts_from_a_detector(places, trained):
    params, stats = initial(places / DETECTOR.name)
    assert len(stats) == 2 * 12
    for name, array in (params | stats).items():
        np.testing.assert_array_equal(array, trained[name], err_msg=name)


def test_a_run_starts_from_a_classifier(places):
    params, stats = initial(places / CLASSIFIER.name)
    of_classifier = flatten_with_names(values(CLASSIFIER, 3)[0])
    kept = {n for n in of_classifier if n.startswith(("downsample_layers/", "stages/"))}
    backbone = {n.removeprefix("backbone/") for n in params if n.startswith("backbone/")}
    norms = {f"norm{i}/{leaf}" for i in range(4) for leaf in ("scale", "bias")}
    assert backbone == kept | norms
    for name in kept:
        np.testing.assert_array_equal(params[f"backbone/{name}"], of_classifier[name])
    for name in norms:  # not the classifier's last
        np.testing.assert_array_equal(params[f"backbone/{name}"], float(name.endswith("scale")))
    # The others are those of a run that starts from nothing.
    drawn = arrays(DETECTOR.create(nnx.Rngs(jax.random.key(Config().seed))))
    for name, array in (params | stats).items():
        if not name.startswith("backbone/"):
            np.testing.assert_array_equal(array, drawn[name], err_msg=name)


def test_weights_of_another_task(places):
    words = f"must hold weights of {DETECTOR.name}, and has those of {UPERNET.name}$"
    with pytest.raises(InputError, match=words):
        initial(places / UPERNET.name)
    words = f"must be of {DETECTOR.name} or its backbone, and are of {UPERNET.name}$"
    with pytest.raises(InputError, match=words):
        load(places / UPERNET.name, model=DETECTOR.name)
    # Heads of the other detector are not those of this one.
    with pytest.raises(InputError, match="must be of mask_rcnn_convnext_tiny or its backbone"):
        load(places / DETECTOR.name, model="mask_rcnn_convnext_tiny")
    with pytest.raises(InputError, match="must be of convnext_tiny"):
        load(places / DETECTOR.name, model="convnext_tiny")
