"""UPerNets of every size are recognised, and files that are no whole ones are refused."""

import collections

import pytest
import upernet_originals as originals
from oracles import torch
from small_files import saved
from transformers import (
    ConvNextConfig,
    ConvNextV2Config,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from upernet_originals import CLASSES, MODEL, WIDTHS

from convnext_jax.convert import recognise
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.keys import key_map
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export_map
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant, list_models

V1 = [f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")]
V2 = ["convnextv2_atto", "convnextv2_nano", "convnextv2_tiny", "convnextv2_huge"]
COUNTER = ".num_batches_tracked"


def published(backbone):
    """transformers' model of the published width, without values."""
    variant = get_variant(backbone)
    config = (ConvNextV2Config if variant.grn else ConvNextConfig)(
        depths=list(variant.depths),
        hidden_sizes=list(variant.dims),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    with torch.device("meta"):
        return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, num_labels=150))


@pytest.mark.parametrize("format", originals.RENAMED)
@pytest.mark.parametrize("backbone", V1 + V2)
def test_every_tensor_has_its_place_and_back(backbone, format):
    state = originals.state_of(published(backbone), format)
    if format == "facebook":  # with the axes that Facebook's GRN has
        state = {n: t.reshape(1, 1, 1, -1) if ".grn." in n else t for n, t in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    dialect = recognise.recognise_format(shapes)
    assert dialect.format == format
    found = recognise.source_structure(dialect, shapes)
    name = f"upernet_{backbone}"
    assert recognise.infer_model(found) == (name, {}) and found.num_classes == 150
    ours = recognise.flat_shapes(recognise.array_shapes(name, 150, {}))
    entries = key_map(dialect.rows, ours)
    assert entries.keys() == ours.keys()
    places = {entry.theirs: entry.shapes for entry in entries.values()}
    counters = {name: shape for name, shape in shapes.items() if name.endswith(COUNTER)}
    assert len(counters) == 13 and set(counters.values()) == {()}
    assert places.keys() == shapes.keys() - counters.keys()
    assert all(shapes[theirs] in allowed for theirs, allowed in places.items())
    if backbone == "convnext_tiny":
        assert len(shapes) == 268  # 186 of the backbone, 74 of the decoder, 8 of the auxiliary head
    written = export_map(name, format, found, {})
    assert {theirs: e.shapes[0] for theirs, e in written.items()} == {
        theirs: shapes[theirs] for theirs in places
    }


# These differ from others in what a UPerNet leaves out of its backbone.
ALIKE = {
    "upernet_convnext_tiny_hnf": "upernet_convnext_tiny",
    "upernet_convnext_large_mlp": "upernet_convnext_large",
}


OTHERS = set(list_models(task="segmentation")) - {f"upernet_{name}" for name in V1 + V2}
# One of each kind; tracing all of them takes a minute.
KINDS = {
    *ALIKE,
    "upernet_convnext_nano_ols",
    "upernet_convnext_zepto_rms",
    "upernet_test_convnext3",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in KINDS else pytest.mark.slow) for x in sorted(OTHERS)],
)
def test_the_registry_s_other_rows_are_found_by_their_shapes(name):
    shapes = recognise.flat_shapes(recognise.array_shapes(name, 7, {}))
    found = recognise.infer_model(recognise.structure_of(shapes))
    assert found == (ALIKE.get(name, name), {})


@pytest.fixture(scope="module")
def state():
    return originals.state_of(originals.small(), "facebook")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def refusal(path, content, **arguments):
    with pytest.raises(InputError) as raised:
        load(saved(path, content), **arguments)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_all_offenders_are_in_one_error(state, path):
    weights = dict(state)
    del weights["decode_head.lateral_convs.1.bn.running_var"]
    del weights["backbone.norm3.bias"]
    del weights["auxiliary_head.convs.0.conv.weight"]
    weights["decode_head.bottleneck.bn.running_mean"] = torch.zeros(3)
    weights["decode_head.psp_modules.2.1.bn.running_mean"] = torch.full((16,), torch.inf)
    weights["decode_head.psp_modules.4.1.bn.running_mean"] = torch.zeros(16)
    weights["decode_head.conv_seg.extra"] = torch.zeros(2)
    weights["decode_head.fpn_convs.0.bn.weight"] = torch.ones(16, dtype=torch.int64)
    weights[f"backbone.norm0{COUNTER}"] = torch.tensor(0)  # there is no BatchNorm
    message = refusal(path, {"state_dict": weights})
    for offence in (
        "missing: `decode_head.lateral_convs.1.bn.running_var` (16,)",
        "missing: `backbone.norm3.bias` (320,)",
        # Nothing else says how wide it was.
        "missing: `auxiliary_head.convs.0.conv.weight` (256, 160, 3, 3)",
        "wrong shape: `decode_head.bottleneck.bn.running_mean` is (3,), not (16,)",
        "not finite: `decode_head.psp_modules.2.1.bn.running_mean`",
        "unknown: `decode_head.psp_modules.4.1.bn.running_mean` (16,)",
        "unknown: `decode_head.conv_seg.extra` (2,)",
        "wrong type: `decode_head.fpn_convs.0.bn.weight` is int64",
        f"unknown: `backbone.norm0{COUNTER}` ()",
    ):
        assert offence in message


def test_the_auxiliary_head_is_asked_for(state, path):
    weights = {name: x for name, x in state.items() if not name.startswith("auxiliary_head.")}
    assert "missing: `auxiliary_head.conv_seg.bias` (5,)" in refusal(path, weights)


def test_files_that_are_no_whole_upernet(state, path):
    backbone = {name: x for name, x in state.items() if name.startswith("backbone.")}
    assert "not those of a ConvNeXt in any of the formats" in refusal(path, backbone)
    other = {name.replace("fpn_bottleneck", "conv"): x for name, x in state.items()}
    assert "not those of a ConvNeXt in any of the formats" in refusal(path, other)
    stages = {name: x for name, x in state.items() if ".stages.1" not in name}
    assert "only parts of a ConvNeXt" in refusal(path, stages)
    blind = {name: x for name, x in state.items() if "conv_seg" not in name}
    assert "only parts of a UPerNet: its heads have no classifier" in refusal(path, blind)
    assert "in the format timm" in refusal(path, state, format="timm")


def test_mmseg_s_perceptrons_may_be_convolutions(path):
    model = originals.small()
    weights = originals.state_of(model, "mmseg")
    convolutions = {
        name: x[:, :, None, None] if "pointwise" in name and x.ndim == 2 else x
        for name, x in weights.items()
    }
    found = load(saved(path, convolutions)).params
    kernel = weights["backbone.stages.0.0.pointwise_conv1.weight"]
    assert (found["backbone"]["stages"][0][0]["pwconv1"]["kernel"] == kernel.numpy().T).all()


def test_a_model_of_the_other_kind(state, path):
    message = refusal(path, state, model="convnext_atto")
    assert "`--model` (=convnext_atto) does not fit: the file holds a UPerNet" in message
    assert "(`upernet_convnext_atto`, perhaps)" in message and "\n" not in message
    classifier = {
        name.removeprefix("backbone."): x
        for name, x in state.items()
        if name.startswith("backbone.") and ".norm" not in name[: len("backbone.norm")]
    }
    message = refusal(path, classifier, model=MODEL)
    assert "the file holds a classifier, no UPerNet (`convnext_atto`, perhaps)" in message
    # One that shapes cannot tell apart is a matter of choice.
    same = load(saved(path, state), model=MODEL)
    assert (same.model_name, same.overrides) == (MODEL, WIDTHS)


@pytest.mark.parametrize("format", ["timm", "torchvision"])
def test_formats_without_upernet(format, state, path, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([saved(path, state), str(tmp_path / "out.pth"), "--to", format])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"{MODEL} cannot be written: {format} has no UPerNet" in error
    assert error.count("\n") == 1 and not (tmp_path / "out.pth").exists()


def test_what_the_formats_of_upernet_cannot_express():
    for name, format, words in [
        ("convnext_tiny", "mmseg", "mmseg has no classifiers"),
        ("upernet_convnext_nano_ols", "mmseg", "no overlapping stems"),
        ("upernet_convnext_xxlarge", "hf", "no norms with epsilon 1e-05"),
        ("upernet_convnext_zepto_rms", "facebook", "no norms without bias"),
        ("upernet_test_convnext3", "mmseg", "no filters of sizes"),
    ]:
        shapes = recognise.flat_shapes(recognise.array_shapes(name, CLASSES, {}))
        with pytest.raises(InputError, match=words):
            export_map(name, format, recognise.structure_of(shapes), {})


class Hook:
    """An object, such as mmengine's `message_hub` has."""


def test_objects_beside_the_weights_are_refused(state, path):
    content = originals.checkpoint(state) | {"message_hub": Hook()}
    message = refusal(path, content)
    assert "is refused, and nothing of it was run" in message and "Hook" in message


def test_states_of_parallel_training(state, path):
    wrapped = collections.OrderedDict((f"module.{name}", x) for name, x in state.items())
    assert load(saved(path, originals.checkpoint(wrapped))).model_name == MODEL
