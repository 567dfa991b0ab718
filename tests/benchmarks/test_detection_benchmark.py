"""The benchmark of detectors gives both the same to do, and says what came out."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import torch
from random_models import random_params

from benchmarks import check, detection, detection_plans, detection_workers, torchvision_detector
from convnext_jax.errors import InputError, RunError
from convnext_jax.models.spec import ModelSpec, params_of

SPEC = ModelSpec("mask_rcnn_convnext_atto", 3)


@pytest.fixture(scope="module")
def both():
    params = random_params(SPEC.abstract_params())
    ours = SPEC.with_params(params)
    return ours, torchvision_detector.build(params_of(ours), "atto", 3)


def features(side: int) -> tuple[np.ndarray, object]:
    x = np.random.default_rng(0).normal(size=(2, side, side, 256)).astype(np.float32)
    return x, torch.from_numpy(x).permute(0, 3, 1, 2)


# Relative to the largest number: sums of up to 12544 products, in another order.
TOLERANCE = 1e-5


def assert_near(found, expected) -> None:
    expected = np.asarray(expected)
    assert np.abs(np.asarray(found) - expected).max() < TOLERANCE * np.abs(expected).max()


def test_box_heads_are_the_same_function(both):
    ours, theirs = both
    x, of_torch = features(7)
    logits, deltas = ours.roi_head.bbox_head(x)
    with torch.inference_mode():
        heads = theirs.roi_heads
        their_logits, their_deltas = heads.box_predictor(heads.box_head(of_torch))
    assert_near(logits, np.roll(their_logits, -1, axis=1))  # our background is the last
    assert_near(deltas, their_deltas.reshape(2, 4, 4)[:, 1:])
    assert theirs.work == {"box_head": 2}


def test_mask_heads_are_the_same_function(both):
    ours, theirs = both
    x, of_torch = features(14)
    masks = ours.roi_head.mask_head(x)
    with torch.inference_mode():
        heads = theirs.roi_heads
        their_masks = heads.mask_predictor(heads.mask_head(of_torch))
    assert_near(masks, their_masks.permute(0, 2, 3, 1)[..., 1:])


def test_region_heads_and_anchors_are_the_same(both):
    ours, theirs = both
    x, of_torch = features(8)
    logits, deltas = ours.rpn_head([x], [np.full((2, 2), 8, np.int32)])
    with torch.inference_mode():
        their_logits, their_deltas = theirs.rpn.head([of_torch])
    assert_near(logits[0], their_logits[0].permute(0, 2, 3, 1).reshape(2, -1))
    assert_near(deltas[0], their_deltas[0].permute(0, 2, 3, 1).reshape(2, -1, 4))
    shapes = [(25, 42), (13, 21)]  # the last is rounded up: 800 // 13 would be a stride of 61
    generator = theirs.rpn.anchor_generator
    cells, generator.cell_anchors = generator.cell_anchors, generator.cell_anchors[-2:]
    strides, torchvision_detector.STRIDES = torchvision_detector.STRIDES, (32, 64)
    try:
        found = generator.grid_anchors(shapes, None)
    finally:
        generator.cell_anchors, torchvision_detector.STRIDES = cells, strides
    assert found[1][3 * 21 * 12 + 1].tolist() == [-256, 12 * 64 - 256, 256, 12 * 64 + 256]


def test_objects_are_put_where_proposals_are():
    rng = np.random.default_rng(0)
    crowds = np.array([[10, 10, 60, 60], [200, 100, 300, 160]], np.float32)
    near = np.concatenate([box + rng.normal(0, 2, (80, 4)) for box in crowds]).astype(np.float32)
    far = np.arange(20, dtype=np.float32)[:, None] * 100 + np.array([0, 900, 20, 920], np.float32)
    chosen = torchvision_detector.choose_objects(np.concatenate([far, near]))
    assert len(chosen) == 7  # as many as images have on average; two have enough proposals
    for crowd in crowds:
        assert np.abs(chosen[:2] - crowd).max(1).min() < 10


def test_detections_that_both_found():
    boxes = np.array([[0, 0, 9, 9], [5, 5, 20, 20], [7, 7, 9, 9]], np.float32)
    scene = {"found_boxes": boxes, "found_labels": np.array([1, 2, 0])}
    found = {"boxes": boxes[None, ::-1] + 0.05, "labels": np.array([[0, 1, 1]])}
    assert detection_workers.same_detections(found, scene) == 2


def result(device: str = "cpu-2-cores", factor: float = 1.0) -> dict:
    modes = {}
    for mode in detection.MODES:
        records = {
            name: {"first_step_seconds": 9.0, "peak_memory_bytes": 2**30}
            for name in ("ours", *torchvision_detector.CONTESTANTS)
        }
        for name in torchvision_detector.CONTESTANTS:
            records[name] |= {"box_head": 1000, "mask_head": 100, "memory_format": "channels_last"}
        seconds = {"ours": [2.0, 2.0, 2.0]}
        seconds |= {n: [2.4 * factor, 9.0, 1.9] for n in torchvision_detector.CONTESTANTS}
        modes[mode] = detection.summarise(records, seconds)
    return {
        "device": device,
        "hardware": "2 cores",
        "versions": {"jax": "1"},
        "backbone": "tiny",
        "size": detection_workers.SIZE,
        "rounds": 3,
        "modes": modes,
        "operations": [
            {"name": "NMS", "seconds": {"ours": 0.001, "torchvision": 0.002}, "ratio": 2.0}
        ],
        "ratios": detection.ratios_of(modes),
    }


def test_ratios_are_of_rounds():
    found = result()["modes"]["infer"]
    assert found["ratios"] == {name: 1.2 for name in torchvision_detector.CONTESTANTS}
    assert found["records"]["ours"]["images_per_second"] == 0.5
    assert found["records"]["torchvision"]["rounds_seconds"] == [2.4, 9.0, 1.9]


def test_a_detector_that_is_less_fast_than_promised():
    assert detection.fell_short(result()) == {}
    assert list(detection.fell_short(result(factor=0.9))) == ["infer"]
    assert list(detection.fell_short(result(factor=0.5))) == ["infer", "train"]


def test_the_table_says_what_was_done():
    text = detection.table(result())
    assert (
        "| infer | torchvision (channels last) | 2.40 | 1.20 | 1000, 100 | 1.0 GiB | 9 s |" in text
    )
    assert "| train | ours | 2.00 |  |  | 1.0 GiB | 9 s |" in text
    assert "| NMS | 1.0 ms | 2.0 ms | 2.00 |" in text


def test_check_finds_a_slower_detector(monkeypatch, tmp_path, capsys):
    was = result(check.this_device()["device"])
    (tmp_path / "detection-here.json").write_text(json.dumps(was))
    (tmp_path / "detection-other.json").write_text(json.dumps(result("abacus")))
    for factor, status in ((0.95, 0), (0.7, 1)):
        now = copy.deepcopy(was)
        now["ratios"] = {name: ratio * factor for name, ratio in was["ratios"].items()}
        monkeypatch.setattr(check, "OTHERS", {"detection": lambda *_, now=now: now})
        with pytest.raises(SystemExit) as ending:
            check.main(["--results", str(tmp_path)])
        assert ending.value.code == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "detection-here.json: as fast as before",
        f"detection-other.json: skipped, this device is {was['device']}",
    ]
    assert "detection-here.json: 0.84 times torchvision, train, was 1.20 times" in lines


@pytest.mark.parametrize("size", ["800", "1333x800", "800x1333x3", "axb", "64x640"])
def test_sizes_that_cannot_be_measured(size):
    with pytest.raises(InputError, match=rf"`size` \(={size}\) must be height x width"):
        detection_workers.parse_size(size)


def test_the_canvas_has_multiples_of_32():
    setting = detection_workers.Setting("tiny", detection_workers.parse_size("800x1333"))
    assert setting.canvas == (800, 1344)


def test_too_few_detections_in_common_end_a_measurement(monkeypatch):
    scene = {"found_boxes": np.zeros((100, 4)), "found_labels": np.arange(100)}
    found = {"boxes": np.zeros((1, 100, 4)), "labels": np.arange(20, 120)[None]}
    monkeypatch.setattr(detection_workers, "read_scene", lambda folder: scene)
    monkeypatch.setattr(detection_workers, "ours", lambda *_: lambda: found)
    with pytest.raises(RunError, match="only 80 detections of 100 are the other's"):
        detection_workers.serve_ours(SimpleNamespace(), "infer", None)


def test_what_is_committed_is_in_the_document():
    document = detection.PAGE.read_text()
    for path in check.RESULTS.glob("detection-*.json"):
        assert detection.table(json.loads(path.read_text())) in document
    plans = json.loads(detection_plans.FILE.read_text()) if detection_plans.FILE.exists() else {}
    assert detection_plans.table(plans) in document


def test_plans_say_what_takes_the_time():
    plan = {
        "per_device_batch": 1,
        "fits": True,
        "memory": {"total": 2**32},
        "hbm": 2**34,
        "flops": 2e12,
        "compute_seconds": 0.2,
        "exchange_seconds": 0.001,
        "images_per_second": 80.0,
        "bound_in": dict.fromkeys(detection_plans.rounds(), 0.02),
        "run": {"steps": 7200.0},
    }
    first, second = detection_plans.table({"v5e:4x4": plan}).splitlines()[2:4]
    assert first == (
        "| v5e:4x4 | 1 | yes | 4.00 of 16 GiB | 2.00 T | 200 ms | 10.0% | 10.0% | 10.0% | 10.0% |"
        " 20.0% | 1.0 ms | 80 | 2.0 h |"
    )
    assert second.startswith("| v5e:2x4 | not compiled yet |")
