"""Detectors as Facebook and mmdetection publish them: in and out, bit by bit."""

import detector_originals as originals
import jax
import numpy as np
import pytest
from detection import torch_detector
from detector_originals import CLASSES, COUNTER, FORMATS, KINDS, NAMES, WIDTHS
from oracles import torch

from convnext_jax import tree
from convnext_jax.checkpointing.reading import read_description
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export
from convnext_jax.data import coco_classes
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import NOT_ON_HUB
from convnext_jax.weights.find import find, resolve

MODEL = {kind: f"{kind}_convnext_atto" for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return originals.build(kind)


@pytest.fixture(scope="module")
def sources(kind, model, tmp_path_factory):
    """The same weights under both names of the backbone."""
    root = tmp_path_factory.mktemp(kind)
    for format in FORMATS:
        content = originals.checkpoint(originals.state_of(model, format), kind)
        torch.save(content, root / f"{format}.pth")
    return {format: root / f"{format}.pth" for format in FORMATS}


@pytest.fixture(scope="module")
def expected(model):
    """Weights and statistics by our names, as the tests of the detectors have them."""
    params, statistics = torch_detector.renamed(model.state_dict(), WIDTHS["fpn_channels"])
    return params | statistics


def arrays(converted):
    return tree.flatten_with_names(converted.params) | tree.flatten_with_names(
        converted.batch_stats
    )


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def written_as_it_was(again, original):
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert again[name].dtype == tensor.dtype, name
        assert torch.equal(again[name], tensor), name  # nothing was counted by the original


@pytest.mark.parametrize("format", FORMATS)
def test_reading_takes_every_bit(format, kind, sources, expected):
    found = load(str(sources[format]))
    assert (found.model_name, found.num_classes) == (MODEL[kind], CLASSES)
    assert found.overrides == WIDTHS and found.format == format
    assert found.class_names == NAMES and found.notes == () and found.licence is None
    assert bool(found.batch_stats) == kind.startswith("cascade")
    feeding = found.preprocessing
    assert (feeding.input_size, feeding.longest_side) == (800, 1333)
    assert (feeding.crop_mode, feeding.interpolation) == ("fit", "bilinear")
    same(arrays(found), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_checkpoint_of_ours_and_back(format, kind, sources, expected, model, tmp_path, capsys):
    main([str(sources[format]), str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert f"{MODEL[kind]}, {CLASSES} classes, in the format {format}" in printed
    described = read_description(tmp_path / "run" / "checkpoints", 0)
    assert described["model"] == {"name": MODEL[kind], "overrides": WIDTHS}
    assert described["metric"] == "box_ap" and described["class_names"] == list(NAMES)
    assert described["preprocessing"]["longest_side"] == 1333
    weights = find(tmp_path / "run")
    same(
        tree.flatten_with_names(weights.on_host())
        | tree.flatten_with_names(weights.batch_stats_on_host()),
        expected,
    )
    # Into the other's names too.
    for other in FORMATS:
        main([str(tmp_path / "run"), str(tmp_path / f"{other}.pth"), "--to", other])
        again = torch.load(tmp_path / f"{other}.pth", weights_only=True)
        assert again["meta"]["CLASSES"] == list(NAMES)
        written_as_it_was(again["state_dict"], originals.state_of(model, other))
    printed = capsys.readouterr().out
    assert "does not say that images are resized to a shorter side of 800 pixels" in printed


def test_safetensors(kind, sources, model, expected, tmp_path, capsys):
    import safetensors.torch

    path = tmp_path / "out.safetensors"
    main([str(sources["facebook"]), str(path), "--to", "mmdet"])
    assert "does not say what the classes are called" in capsys.readouterr().out
    written_as_it_was(safetensors.torch.load_file(path), originals.state_of(model, "mmdet"))
    found = load(str(path))
    same(arrays(found), expected)
    # Nothing is said of anything.
    assert found.class_names is None
    (note,) = found.notes
    assert "in what size it saw images" in note and "800 pixels" in note
    counters = [n for n in originals.state_of(model, "mmdet") if n.endswith(COUNTER)]
    assert len(counters) == (12 if kind.startswith("cascade") else 0)


CANVAS = (64, 96)


def with_settings(kind, file):
    """A detector of fewer boxes, and what is found in its checkpoint."""
    settings = {"before": 30, "after": 40, "detections": 20, "score_threshold": 0.1}
    theirs = originals.build(kind, depths=(1, 1, 1, 1), dims=(12, 16, 20, 24), **settings)
    # What weights do not show is in the config.
    config = originals.CONFIG[kind].partition("test_cfg=")
    tests = config[2].replace("nms_pre=1000", "nms_pre=30").replace("img=1000", "img=40")
    tests = tests.replace("score_thr=0.05", "score_thr=0.1").replace("img=100,", "img=20,")
    content = originals.checkpoint(theirs.state_dict(), kind, config="".join((*config[:2], tests)))
    torch.save(content, file)
    weights = find(
        file, model=MODEL[kind], overrides={"depths": (1, 1, 1, 1), "dims": (12, 16, 20, 24)}
    )
    return theirs, weights


def test_what_weights_do_not_show_is_read_from_the_config(kind, tmp_path):
    _, weights = with_settings(kind, tmp_path / "x.pth")
    taken = {"rpn_before_test": 30, "rpn_after_test": 40, "detections": 20, "score_threshold": 0.1}
    assert taken.items() <= weights.description.spec.overrides.items()


# The arrays above are those with which tests/detection/test_detectors.py compares all of both.
@pytest.mark.slow
def test_detections_are_those_of_pytorch(kind, tmp_path):
    theirs, weights = with_settings(kind, tmp_path / "x.pth")
    spec = weights.description.spec
    images = np.random.default_rng(0).standard_normal((1, *CANVAS, 3), dtype=np.float32)
    theirs = theirs.double().eval()
    pixels = torch.tensor(images).permute(0, 3, 1, 2).double()
    ((boxes, scores, labels, masks),) = theirs.detect(pixels, [CANVAS])
    found, _ = jax.jit(spec.function_with_batch_stats())(
        weights.on_host(),
        weights.batch_stats_on_host(),
        images,
        sizes=np.array([CANVAS], np.int32),
        portrait=np.zeros(1, np.int32),
    )
    count = len(boxes)
    assert 5 < count <= 20 and (np.asarray(found.labels[0, count:]) == -1).all()
    np.testing.assert_array_equal(found.labels[0, :count], labels)
    # float32 beside float64, as in tests/detection.
    np.testing.assert_allclose(found.scores[0, :count], scores, rtol=1e-3)
    np.testing.assert_allclose(found.boxes[0, :count], boxes, rtol=0, atol=1e-3 * CANVAS[1])
    np.testing.assert_allclose(found.masks[0, :count], masks, rtol=0, atol=1e-3)


def test_other_classes_are_untrained_layers(kind, sources, expected):
    found = load(str(sources["mmdet"]), num_classes=2)
    assert "untrained" in found.notes[0] and found.class_names is None
    changed, last = arrays(found), {}
    for name, array in expected.items():
        layer = name.split("/")[-2]
        if layer in ("fc_cls", "fc_reg", "conv_logits"):
            last.setdefault(layer, []).append(changed[name])
        else:
            np.testing.assert_array_equal(changed[name], array, err_msg=name)
    # As the model starts: widths, and standard deviations of kernels.
    for layer, width, stddev in (
        ("fc_cls", 3, 0.01),
        ("fc_reg", 8, 0.001),
        ("conv_logits", 2, 1.0),
    ):
        assert len(last[layer]) == (6 if kind.startswith("cascade") else 2)
        for array in last[layer]:
            assert array.shape[-1] == width
            # Of 32 and more numbers.
            assert np.std(array) == pytest.approx(0 if array.ndim == 1 else stddev, rel=0.5)
    with pytest.raises(InputError, match=r"`num_classes` \(=0\) must be positive"):
        load(str(sources["mmdet"]), num_classes=0)


def test_statistics_are_the_model_s(tmp_path):
    kind = "cascade_mask_rcnn"
    state = originals.state_of(originals.build(kind), "facebook")
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    found = load(str(tmp_path / "x.pth"))
    with pytest.raises(InputError, match=r"`roi_head/bbox_head/0/.*/bn/mean` .* is missing"):
        export(found.params, MODEL[kind], "mmdet", tmp_path / "y.pth", overrides=WIDTHS)


def test_eighty_classes_without_names_are_coco_s(tmp_path):
    state = originals.state_of(originals.build("mask_rcnn", num_classes=80), "facebook")
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    assert find(tmp_path / "x.pth").description.class_names == coco_classes.CLASSES
    assert find(tmp_path / "x.pth", num_classes=7).description.class_names is None
    names = [f"thing {i}" for i in range(80)]
    torch.save({"state_dict": state, "meta": {"CLASSES": names}}, tmp_path / "x.pth")
    assert find(tmp_path / "x.pth").description.class_names == tuple(names)


def test_published_files_have_names():
    server = "https://dl.fbaipublicfiles.com/convnext/"
    assert resolve("mask_rcnn_convnext_tiny.fb_in1k_ft_coco") == (
        f"{server}coco/mask_rcnn_convnext_tiny_1k_3x.pth"
    )
    assert resolve("cascade_mask_rcnn_convnext_xlarge.fb_in22k_ft_coco") == (
        f"{server}coco/cascade_mask_rcnn_convnext_xlarge_22k_3x.pth"
    )
    assert len([row for row in NOT_ON_HUB.values() if "coco" in row.name]) == 7
    words = "published weights are called cascade_mask_rcnn_convnext_large.fb_in22k_ft_coco"
    with pytest.raises(InputError, match=words):
        find("cascade_mask_rcnn_convnext_large")
    with pytest.raises(InputError, match="did you mean mask_rcnn_convnext_tiny.fb_in1k_ft_coco"):
        find("mask_rcnn_convnext_tiny.fb_in1k_coco")
    with pytest.raises(InputError, match="of which no published weights are known"):
        find("mask_rcnn_convnext_large")
