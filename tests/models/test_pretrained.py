"""Every set of published weights, as timm lists it."""

import pytest
from oracles import timm

from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import PRETRAINED
from convnext_jax.models.registry import get_pretrained, list_pretrained
from convnext_jax.models.variants import CLASSIFIERS, VARIANTS, Preprocessing

# Others have weights too, but not with timm.
IN_TIMM = [name for name in CLASSIFIERS if CLASSIFIERS[name].architecture == "convnext"]


def test_all_of_timms_weights_are_listed():
    patterns = ("convnext*", "test_convnext*")
    theirs = [n for pattern in patterns for n in timm.list_models(pattern, pretrained=True)]
    assert len(theirs) == 101 and set(theirs) == set(PRETRAINED)
    assert list_pretrained() == sorted(theirs)
    assert {weights.variant for weights in PRETRAINED.values()} == set(IN_TIMM)
    assert list_pretrained("convnext_large.*") == [
        "convnext_large.dinov3_lvd1689m",
        "convnext_large.fb_in1k",
        "convnext_large.fb_in22k",
        "convnext_large.fb_in22k_ft_in1k",
        "convnext_large.fb_in22k_ft_in1k_384",
    ]


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_row_is_timms(name):
    weights = get_pretrained(name)
    theirs = timm.models.get_pretrained_cfg(name)
    resolved = timm.data.resolve_data_config(pretrained_cfg=theirs.to_dict())
    assert {
        "input_size": (3, weights.input_size, weights.input_size),
        "crop_pct": weights.crop_fraction,
        "crop_mode": weights.crop_mode,
        "interpolation": weights.interpolation,
        "mean": weights.mean,
        "std": weights.std,
    } == resolved
    assert weights.num_classes == theirs.num_classes and weights.hub_id == theirs.hf_hub_id
    # The authors publish V1 under MIT; timm calls its copies Apache-2.0.
    licence = "mit" if ".fb_" in name else theirs.license
    assert weights.licence.lower() == licence


def test_resolved_from_a_model():
    # What timm resolves from a model is what it resolves from the tag's record, as used above.
    name = "test_convnext.r160_in1k"
    theirs = timm.data.resolve_model_data_config(timm.create_model(name))
    record = timm.models.get_pretrained_cfg(name).to_dict()
    assert theirs == timm.data.resolve_data_config(pretrained_cfg=record)


@pytest.mark.parametrize("name", IN_TIMM)
def test_variant_is_fed_as_one_of_its_weights(name):
    def feeding(row):
        return {field: getattr(row, field) for field in Preprocessing.__dataclass_fields__}

    classifiers = [
        weights
        for weights in PRETRAINED.values()
        if weights.variant == name and weights.num_classes == 1000
    ]
    assert feeding(VARIANTS[name]) in [feeding(weights) for weights in classifiers]
    assert VARIANTS[name].input_size == min(weights.input_size for weights in classifiers)


def test_unknown_weights():
    with pytest.raises(InputError, match=r"`name` \(=convnext_tiny.fb_in21k\).*tiny.fb_in22k"):
        get_pretrained("convnext_tiny.fb_in21k")
