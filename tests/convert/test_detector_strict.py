"""Detectors of the published sizes are recognised, and files that are no whole ones are refused."""

import detector_originals as originals
import pytest
from detector_originals import CLASSES, COUNTER, FORMATS, WIDTHS
from oracles import torch
from small_files import saved

from convnext_jax.convert import published, recognise
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.keys import key_map
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export_map
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import NOT_ON_HUB
from convnext_jax.models.registry import get_variant

PUBLISHED = {name: row for name, row in NOT_ON_HUB.items() if name.endswith("_ft_coco")}


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_shapes(name):
    """Of the authors' file, as mmdetection 2.11 builds the model of their config."""
    variant = get_variant(name)
    dims, shapes = variant.dims, {}
    for s, (depth, dim) in enumerate(zip(variant.depths, dims, strict=True)):
        down = f"backbone.downsample_layers.{s}"
        if s == 0:
            shapes |= layer(f"{down}.0", dim, 3, 4, 4) | layer(f"{down}.1", dim)
        else:
            shapes |= layer(f"{down}.0", dims[s - 1]) | layer(f"{down}.1", dim, dims[s - 1], 2, 2)
        for j in range(depth):
            block = f"backbone.stages.{s}.{j}"
            shapes |= {f"{block}.gamma": (dim,)} | layer(f"{block}.dwconv", dim, 1, 7, 7)
            shapes |= layer(f"{block}.norm", dim) | layer(f"{block}.pwconv1", 4 * dim, dim)
            shapes |= layer(f"{block}.pwconv2", dim, 4 * dim)
        shapes |= layer(f"backbone.norm{s}", dim)
        shapes |= layer(f"neck.lateral_convs.{s}.conv", 256, dim, 1, 1)
        shapes |= layer(f"neck.fpn_convs.{s}.conv", 256, 256, 3, 3)
    shapes |= layer("rpn_head.rpn_conv", 256, 256, 3, 3)
    shapes |= layer("rpn_head.rpn_cls", 3, 256, 1, 1) | layer("rpn_head.rpn_reg", 12, 256, 1, 1)
    cascade = name.startswith("cascade")
    for stage in (".0", ".1", ".2") if cascade else ("",):
        box, mask = f"roi_head.bbox_head{stage}", f"roi_head.mask_head{stage}"
        for i in range(4):
            shapes |= layer(f"{mask}.convs.{i}.conv", 256, 256, 3, 3)
            if cascade:
                shapes[f"{box}.shared_convs.{i}.conv.weight"] = (256, 256, 3, 3)
                norm = f"{box}.shared_convs.{i}.bn"
                shapes |= layer(norm, 256) | {f"{norm}{COUNTER}": ()}
                shapes |= {f"{norm}.running_mean": (256,), f"{norm}.running_var": (256,)}
        shapes |= layer(f"{box}.shared_fcs.0", 1024, 12544)
        if not cascade:
            shapes |= layer(f"{box}.shared_fcs.1", 1024, 1024)
        shapes |= layer(f"{box}.fc_cls", 81, 1024) | layer(f"{box}.fc_reg", 320, 1024)
        # Of a transposed convolution PyTorch has the inputs first, in whose number biases are too.
        shapes |= layer(f"{mask}.upsample", 256, 256, 2, 2)
        shapes |= layer(f"{mask}.conv_logits", 80, 256, 1, 1)
    return shapes


PARAMETERS = {
    # In millions, as in the paper's table 3; and exactly.
    "mask_rcnn_convnext_tiny": (48, 48_095_376),
    "cascade_mask_rcnn_convnext_tiny": (86, 85_930_578),
    "cascade_mask_rcnn_convnext_small": (108, 107_565_138),
    "cascade_mask_rcnn_convnext_base": (146, 145_800_242),
    "cascade_mask_rcnn_convnext_large": (255, 254_710_770),
    "cascade_mask_rcnn_convnext_xlarge": (407, 406_875_058),
}
# The others differ in the backbone alone, and a large one takes seconds to trace.
FIRST = ("mask_rcnn_convnext_tiny", "cascade_mask_rcnn_convnext_tiny")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.slow) for n in PARAMETERS]
)
def test_every_tensor_of_a_published_file_has_its_place_and_back(name, format):
    shapes = published_shapes(name)
    millions, exactly = PARAMETERS[name]
    count = sum(torch.Size(s).numel() for n, s in shapes.items() if ".running_" not in n)
    counters = {n for n in shapes if n.endswith(COUNTER)}
    assert count - len(counters) == exactly and round(exactly / 1e6) == millions
    if format == "mmdet":
        shapes = {
            n.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv"): s
            for n, s in shapes.items()
        }
    dialect = recognise.recognise_format(shapes)
    assert dialect.format == format
    found = recognise.source_structure(dialect, shapes)
    assert recognise.infer_model(found) == (name, {}) and found.num_classes == 80
    ours = recognise.flat_shapes(recognise.array_shapes(name, 80, {}))
    entries = key_map(dialect.rows, ours)
    assert entries.keys() == ours.keys()
    places = {entry.theirs: entry.shapes for entry in entries.values()}
    assert len(counters) == (12 if name.startswith("cascade") else 0)
    assert places.keys() == shapes.keys() - counters
    assert all(shapes[theirs] in allowed for theirs, allowed in places.items())
    written = export_map(name, format, found, {})
    assert {theirs: e.shapes[0] for theirs, e in written.items()} == {
        theirs: shapes[theirs] for theirs in places
    }


def test_published_names_are_known():
    assert len(PUBLISHED) == 7
    for row in PUBLISHED.values():
        assert row.url is not None
        for place in (row.url, f"w/{row.url.rpartition('/')[2]}"):
            assert published.find_published(place, row.variant, 80) is row
        assert row.licence == "MIT"
        # Trained further, under the same name.
        assert published.find_published(row.url, row.variant, 3) is None
        # Another size, under the same name.
        assert published.find_published(row.url, f"{row.variant}_hnf", 80) is None
        variant = get_variant(row.variant)
        for field in ("input_size", "longest_side", "crop_mode", "interpolation", "mean", "std"):
            assert getattr(row, field) == getattr(variant, field), field


@pytest.fixture(scope="module")
def cascade():
    return originals.state_of(originals.build("cascade_mask_rcnn"), "facebook")


@pytest.fixture(scope="module")
def plain():
    return originals.state_of(originals.build("mask_rcnn"), "mmdet")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def refusal(path, content, **arguments):
    with pytest.raises(InputError) as raised:
        load(saved(path, content), **arguments)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_all_offenders_are_in_one_error(cascade, path):
    weights = dict(cascade)
    del weights["backbone.norm3.bias"]
    del weights["roi_head.bbox_head.1.shared_convs.2.bn.running_var"]
    del weights["neck.lateral_convs.1.conv.weight"]
    weights["roi_head.bbox_head.0.shared_fcs.0.weight"] = torch.zeros(32, 16 * 49 - 1)
    weights["roi_head.mask_head.2.upsample.weight"] = torch.zeros(2, 2, 16, 16)
    weights["roi_head.bbox_head.0.shared_fcs.1.weight"] = torch.zeros(32, 32)
    weights["roi_head.bbox_head.3.fc_cls.weight"] = torch.zeros(6, 32)
    weights["roi_head.semantic_head.conv.weight"] = torch.zeros(2)
    weights["rpn_head.rpn_cls.bias"] = torch.full((3,), torch.nan)
    weights[f"rpn_head.rpn_conv.bn{COUNTER}"] = torch.tensor(0)  # there is no BatchNorm
    message = refusal(path, {"state_dict": weights})
    for offence in (
        "missing: `backbone.norm3.bias` (320,)",
        "missing: `roi_head.bbox_head.1.shared_convs.2.bn.running_var` (16,)",
        "missing: `neck.lateral_convs.1.conv.weight` (16, 80, 1, 1)",
        "wrong shape: `roi_head.bbox_head.0.shared_fcs.0.weight` is (32, 783), not (32, 784)",
        "wrong shape: `roi_head.mask_head.2.upsample.weight` is (2, 2, 16, 16), not (16, 16, 2, 2)",
        "unknown: `roi_head.bbox_head.0.shared_fcs.1.weight` (32, 32)",
        "unknown: `roi_head.bbox_head.3.fc_cls.weight` (6, 32)",
        "unknown: `roi_head.semantic_head.conv.weight` (2,)",
        "not finite: `rpn_head.rpn_cls.bias`",
        f"unknown: `rpn_head.rpn_conv.bn{COUNTER}` ()",
    ):
        assert offence in message


def without(state, part):
    return {name: x for name, x in state.items() if part not in name}


def test_files_that_are_no_whole_detector(cascade, plain, path):
    backbone = {name: x for name, x in cascade.items() if name.startswith("backbone.")}
    assert "not those of a ConvNeXt in any of the formats" in refusal(path, backbone)
    no_stage = without(cascade, ".stages.1")
    assert "only parts of a ConvNeXt" in refusal(path, no_stage)
    message = refusal(path, without(cascade, "fc_cls"))
    assert "parts of a Cascade Mask R-CNN: its heads have no classifier" in message
    # mmdetection's Faster R-CNN.
    message = refusal(path, without(plain, "mask_head"))
    assert "missing: `roi_head.mask_head.conv_logits.bias` (5,)" in message
    two_stages = without(cascade, "_head.2.")
    assert "missing: `roi_head.bbox_head.2.fc_cls.bias` (6,)" in refusal(path, two_stages)
    assert "in the format mmseg" in refusal(path, plain, format="mmseg")


def test_one_box_or_mask_for_all_classes(cascade, plain, path):
    agnostic = {name: x[:4] if "fc_reg" in name else x for name, x in cascade.items()}
    message = refusal(path, agnostic)
    assert "boxes are the same for all 5 classes (`reg_class_agnostic`)" in message
    agnostic = {name: x[:1] if "conv_logits" in name else x for name, x in plain.items()}
    message = refusal(path, agnostic)
    assert "masks are the same for all 5 classes (`class_agnostic`)" in message
    assert "\n" not in message


def test_torchvision_s_detectors(path):
    weights = {
        "backbone.body.conv1.weight": torch.zeros(64, 3, 7, 7),
        "backbone.fpn.inner_blocks.0.0.weight": torch.zeros(256, 256, 1, 1),
        "rpn.head.conv.0.0.weight": torch.zeros(256, 256, 3, 3),
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(91, 1024),
    }
    message = refusal(path, weights)
    assert "a detector of torchvision's" in message and "only mmdetection's can be read" in message
    assert "\n" not in message


def test_a_model_of_the_other_kind(cascade, plain, path):
    message = refusal(path, cascade, model="convnext_atto")
    assert "the file holds a Cascade Mask R-CNN, a backbone and its heads" in message
    assert "(`cascade_mask_rcnn_convnext_atto`, perhaps)" in message and "\n" not in message
    message = refusal(path, plain, model="cascade_mask_rcnn_convnext_atto")
    assert "the file holds a Mask R-CNN" in message
    assert "(`mask_rcnn_convnext_atto`, perhaps)" in message
    assert "holds a Mask R-CNN" in refusal(path, plain, model="upernet_convnext_atto")
    classifier = {
        name.removeprefix("backbone."): x
        for name, x in cascade.items()
        if name.startswith(("backbone.downsample_layers", "backbone.stages"))
    }
    message = refusal(path, classifier, model="mask_rcnn_convnext_atto")
    assert "the file holds a classifier, no Mask R-CNN (`convnext_atto`, perhaps)" in message
    same = load(saved(path, plain), model="mask_rcnn_convnext_atto")
    assert (same.model_name, same.overrides) == ("mask_rcnn_convnext_atto", WIDTHS)


@pytest.mark.parametrize("format", ["timm", "torchvision", "hf", "mmseg"])
def test_formats_without_detectors(format, plain, path, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([saved(path, plain), str(tmp_path / "out.pth"), "--to", format])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"mask_rcnn_convnext_atto cannot be written: {format} has no Mask R-CNN" in error
    assert error.count("\n") == 1 and not (tmp_path / "out.pth").exists()


def test_what_mmdetection_cannot_express():
    for name, words in [
        ("convnext_tiny", "mmdet has no classifiers"),
        ("upernet_convnext_tiny", "mmdet has no UPerNet"),
        ("mask_rcnn_convnext_nano_ols", "no overlapping stems"),
    ]:
        shapes = recognise.flat_shapes(recognise.array_shapes(name, CLASSES, {}))
        with pytest.raises(InputError, match=words):
            export_map(name, "mmdet", recognise.structure_of(shapes), {})
