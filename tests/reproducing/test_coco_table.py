"""The table of COCO on a miniature of it, with a detector of the paper's size in both dialects."""

import json
import os
import subprocess
import sys

import pytest
from convert import detector_originals as originals
from data import miniature_coco
from detection import torch_detector
from oracles import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convnext_jax.data import coco_classes, prepare

NAME = "mask_rcnn_convnext_tiny_1k_3x"


def run(command, *arguments):
    """What a command prints, on one device, compiled to run fast."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    program = [sys.executable, "-m", f"convnext_jax.{command}", *arguments]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_pycocotools(truth, file, kind):
    annotated = COCO(truth)
    evaluated = COCOeval(annotated, annotated.loadRes(str(file)), kind)
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
    return evaluated.stats[0]


@pytest.mark.slow  # compiles ConvNeXt-T at 800 x 1344, and runs it on several images
def test_a_miniature_of_coco_through_the_table(tmp_path):
    categories = list(zip(coco_classes.CATEGORY_IDS, coco_classes.CLASSES, strict=True))
    files = miniature_coco.contents(categories, train=0, validation=3)
    miniature_coco.write_folders(tmp_path / "coco", files)
    prepare.prepare("coco2017", str(tmp_path / "first"), str(tmp_path / "coco"))

    model = originals.build(
        "mask_rcnn",
        depths=(3, 3, 9, 3),
        dims=(96, 192, 384, 768),
        num_classes=80,
        kernel=7,
        channels=256,
        features=1024,
    )
    torch_detector.randomise(model, seed=0)
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.weight.mul_(4)  # so that it is sure of something
    names = list(coco_classes.CLASSES)
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / f"{NAME}.pth"
    state = originals.state_of(model, "facebook")
    torch.save({"state_dict": state, "meta": {"CLASSES": names}}, file)
    other = tmp_path / "other.pth"
    torch.save({"state_dict": originals.state_of(model, "mmdet")}, other)

    of_run = ["--checkpoint", str(tmp_path / "run"), "--dataset=coco2017", "--batch_size=1"]
    run("convert", str(other), str(tmp_path / "run"))
    outputs = [f"--data_dir={tmp_path / 'first'}", "--output", str(tmp_path / "found.json")]
    run("evaluate", *of_run, *outputs)

    # What random weights find is nowhere: some of it becomes the truth.
    truth = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(truth.read_text())
    boxes, masks = (
        json.loads((tmp_path / f"found.{kind}.json").read_text()) for kind in ("bbox", "segm")
    )
    assert len(boxes) > 20
    content["annotations"] = [
        box
        | {"id": number, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]}
        | {"segmentation": mask["segmentation"]}
        for number, (box, mask) in enumerate(zip(boxes, masks, strict=True), 1)
        if number % 3 and coco_mask.area(mask["segmentation"]) > 0
    ]
    truth.write_text(json.dumps(content))
    prepare.prepare("coco2017", str(tmp_path / "second"), str(tmp_path / "coco"))
    table = ["coco", f"--weights={tmp_path / 'weights'}", f"--only={NAME}", "--partial"]
    where = [f"--data_dir={tmp_path / 'second'}", "--batch_size=1"]
    run("reproduce", *table, *where, "--workdir", str(tmp_path / "tables"))
    rows = json.loads((tmp_path / "tables" / "coco.json").read_text())["rows"]
    found = {
        row["name"].rpartition("/")[2]: row["value"]
        for row in rows
        if row["name"].startswith(f"{NAME}/")
    }
    for metric, kind in (("box_ap", "bbox"), ("mask_ap", "segm")):
        theirs = by_pycocotools(str(truth), tmp_path / f"found.{kind}.json", kind)
        assert found[metric] == pytest.approx(100 * theirs, abs=1e-6)
        assert 0 < found[metric] < 100
