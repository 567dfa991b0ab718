"""For every published architecture, names and shapes alone: nothing of it is computed."""

import numpy as np
import pytest
from oracles import timm, torch, torchvision
from originals import facebook_names, hf_model

from convnext_jax.convert import recognise
from convnext_jax.convert.keys import apply, key_map
from convnext_jax.convert.write import export_map
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import CLASSIFIERS

STAGED = [name for name in CLASSIFIERS if "isotropic" not in name]
V1 = ["tiny", "small", "base", "large", "xlarge"]
V2 = ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"]


def sized(kind, name):
    variant = get_variant(name)
    return hf_model(kind, 1000, variant.depths, variant.dims)


def cases():
    for name in STAGED:
        yield "timm", name, lambda name=name: timm.create_model(name)
    for name in V1:
        ours = f"convnext_{name}"
        yield "hf", ours, lambda name=ours: sized("ConvNext", name)
        yield "facebook", ours, lambda name=ours: timm.create_model(name)
        if name != "xlarge":
            yield "hf_dinov3", ours, lambda name=ours: sized("DINOv3ConvNext", name)
            yield "torchvision", ours, lambda name=ours: torchvision.models.get_model(name)
    for name in V2:
        ours = f"convnextv2_{name}"
        yield "hf", ours, lambda name=ours: sized("ConvNextV2", name)
        yield "facebook", ours, lambda name=ours: timm.create_model(name)


CASES = list(cases())


@pytest.mark.parametrize(
    ("format", "name", "build"), CASES, ids=[f"{format} {name}" for format, name, _ in CASES]
)
def test_every_tensor_has_its_parameter_and_back(format, name, build):
    with torch.device("meta"):
        state = build().state_dict()
    if format == "facebook":  # Its perceptrons are linear layers throughout.
        state = {
            n: t.flatten(1) if "pwconv" in n and "weight" in n else t
            for n, t in facebook_names(state).items()
        }
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    dialect = recognise.recognise_format(shapes)
    assert dialect.format == format
    found = recognise.source_structure(dialect, shapes)
    assert recognise.infer_model(found) == (name, {})
    ours = recognise.flat_shapes(recognise.parameter_shapes(name, found.num_classes, {}))
    entries = key_map(dialect.rows, ours)
    assert entries.keys() == ours.keys()
    assert {e.theirs for e in entries.values()} == shapes.keys()
    assert all(shapes[e.theirs] in e.shapes for e in entries.values())
    if format != "hf_dinov3":
        written = export_map(name, format, found, {})
        assert {theirs: e.shapes[0] for theirs, e in written.items()} == shapes


def test_models_that_a_format_cannot_express():
    for name, format, words in [
        ("convnextv2_atto", "torchvision", "no GRN, no blocks without layer scale"),
        ("convnext_isotropic_small", "timm", "no isotropic models"),
        ("convnext_tiny_hnf", "facebook", "no norms before the pooling"),
        ("convnext_atto_ols", "hf", "no overlapping stems"),
        ("convnext_xxlarge", "hf", "no norms with epsilon 1e-05"),
        ("test_convnext2", "facebook", "no norms with epsilon 1e-05, no the activation"),
        ("convnext_large_mlp", "torchvision", "no hidden layers in the head"),
        ("convnext_tiny", "openclip", "must be one of facebook, timm, torchvision, hf"),
    ]:
        shapes = recognise.flat_shapes(recognise.parameter_shapes(name, 1000, {}))
        with pytest.raises(InputError, match=words):
            export_map(name, format, recognise.structure_of(shapes), {})


def test_variants_that_shapes_cannot_tell_apart_need_a_choice(monkeypatch):
    shapes = recognise.flat_shapes(recognise.parameter_shapes("convnext_atto", 1000, {}))
    twin = {**recognise._KNOWN, "convnext_twin": get_variant("convnext_atto")}
    monkeypatch.setattr(recognise, "_KNOWN", twin)
    structure_of_variant = recognise._structure_of_variant
    monkeypatch.setattr(
        recognise,
        "_structure_of_variant",
        lambda name: structure_of_variant(name.replace("twin", "atto")),
    )
    with pytest.raises(InputError, match="convnext_atto, convnext_twin.*choose one with `--model`"):
        recognise.infer_model(recognise.structure_of(shapes))


def test_a_float64_tensor_is_not_rounded():
    (entry,) = key_map(recognise.DIALECTS[3].rows, {"norm/scale": (2,)}).values()
    with pytest.raises(InputError, match="is float64"):
        apply({"norm.weight": np.ones(2)}, {"norm/scale": entry}, what="this")
