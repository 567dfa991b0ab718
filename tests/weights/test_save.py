"""Models saved from Python, as `load_pretrained` and the commands read them."""

import jax
import numpy as np
import pytest
from classification.small import NAMES, PHOTOGRAPHS, SPEC, model_with, small_params
from flax import nnx

import convnext_jax
from convnext_jax import predict
from convnext_jax.errors import InputError
from convnext_jax.models.spec import batch_stats_of, params_of

SMALL = dict(SPEC.overrides)
FEEDING = convnext_jax.Preprocessing(input_size=64, crop_fraction=0.9)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_was_saved_is_loaded_and_predicts(tmp_path, capsys):
    model = model_with(SPEC, small_params(3))
    convnext_jax.save_pretrained(
        model,
        tmp_path / "mine",
        SPEC.name,
        preprocessing=FEEDING,
        class_names=NAMES,
        licence="MIT",
        **SMALL,
    )
    assert capsys.readouterr() == ("", "")
    found = convnext_jax.load(tmp_path / "mine")
    same(params_of(found.model), params_of(model))
    assert (found.preprocessing, found.class_names, found.licence) == (FEEDING, NAMES, "MIT")
    PHOTOGRAPHS[0].save(tmp_path / "photo.png")
    with pytest.raises(SystemExit) as ended:
        predict.main([str(tmp_path / "photo.png"), "--checkpoint", str(tmp_path / "mine")])
    assert ended.value.code == 0
    (ours,) = convnext_jax.Predictor(model, FEEDING, NAMES).predict([PHOTOGRAPHS[0]])
    assert f"{ours.probabilities[0]:7.2%}  {ours.names[0]}" in capsys.readouterr().out


def test_batch_statistics_are_kept(tmp_path):
    overrides = SMALL | {"decoder_channels": 8, "auxiliary_channels": 8}
    model = convnext_jax.create_model("upernet_convnext_atto", 5, nnx.Rngs(1), **overrides)
    model.decode_head.bottleneck.bn.mean[...] += 3.0
    convnext_jax.save_pretrained(model, tmp_path, "upernet_convnext_atto", **overrides)
    found = convnext_jax.load_pretrained(tmp_path)
    same(params_of(found), params_of(model))
    same(batch_stats_of(found), batch_stats_of(model))


def test_without_more_the_papers_preprocessing_is_stored(tmp_path):
    model = model_with(SPEC, small_params())
    convnext_jax.save_pretrained(model, tmp_path, SPEC.name, **SMALL)
    found = convnext_jax.load(tmp_path)
    assert found.preprocessing.input_size == 224 and found.class_names is None


def test_what_cannot_be_saved(tmp_path):
    model = model_with(SPEC, small_params())
    for overrides, more, sentence in (
        ({}, {}, "`model` must be convnext_atto with the given overrides"),
        (SMALL | {"norm_eps": 1e-2}, {}, "what has no parameters differs"),
        (SMALL | {"activation": "silu"}, {}, "what has no parameters differs"),
        (SMALL, {"class_names": ["one"]}, "the number of `class_names` (=1) must be the model's"),
    ):
        with pytest.raises(InputError) as raised:
            convnext_jax.save_pretrained(model, tmp_path / "new", SPEC.name, **more, **overrides)
        assert sentence in str(raised.value)
    assert not list(tmp_path.iterdir())
    convnext_jax.save_pretrained(model, tmp_path / "mine", SPEC.name, **SMALL)
    with pytest.raises(InputError, match="must not hold a checkpoint already"):
        convnext_jax.save_pretrained(model, tmp_path / "mine", SPEC.name, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder that can be written"):
        convnext_jax.save_pretrained(model, tmp_path / "file", SPEC.name, **SMALL)
