"""What Cascade Mask R-CNN needs on TPU slices: `python -m benchmarks.detection_plans [--again]`.

Compiles the training step of `configs/coco.py:cascade_tiny` in bfloat16 for slices that need not be
here, at 1 and 2 images a chip, a quarter of an hour each; plans that the results file has are kept.
Counts how much of the compiler's estimate is in what detection has and other tasks have not: these
are loops over as many tiles, boxes or objects as there are, and count as often as `rounds` says.
Writes `benchmarks/results/detection_plans.json` and the table of docs/detection.md.
"""

import os

# The compiler needs no TPU; where there is one, this leaves it alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import importlib.metadata
import json
from typing import Any

import numpy as np

from benchmarks.detection_ops import STRIDES, proposals
from benchmarks.readme import RESULTS, ROOT, rewrite
from convnext_jax.config_files import load_config
from convnext_jax.errors import RunError, exit_in_one_sentence
from convnext_jax.plan import DATASETS
from convnext_jax.planning.compiling import Job, Variant, measure
from convnext_jax.planning.machines import GIB, describe_devices, parse_machine

FILE = RESULTS / "detection_plans.json"
PAGE = ROOT / "docs" / "detection.md"
CONFIG = str(ROOT / "configs" / "coco.py") + ":cascade_tiny"
# 1 and 2 images a chip of the paper's 16.
PLANS = ("v5e:4x4", "v5e:2x4", "v4:2x2x4", "v4:2x2x2")
# Of a step's 16 images, the one with most objects has about so many.
OBJECTS = 20
# Of `ops.roi_align`: side of a tile and tiles at a time, of features and of bitmaps. Of `ops.nms`:
# boxes at a time, and how often it looks at them.
TILES = {"roi_align": (16, 32), "mask_targets": (128, 16)}
BLOCK, LOOKS = 128, 5
# Scopes whose shares the table has, by column.
COLUMNS = (("roi_align",), ("mask_targets",), ("nms",), ("assign",), ("top_k", "sample"))


def rounds() -> dict[str, tuple[int, ...]]:
    """How often the loops within each scope go round in a step, nested ones one after the other.

    Those of RoIAlign follow from made-up boxes: 512 and 128 regions, over four levels. Their mean
    is taken, as the text of a program does not say which loop is whose.
    """
    rng = np.random.default_rng(0)
    of_levels = []
    for count in (512, 128):
        boxes = proposals(rng, count)
        sides = boxes[:, 2:] - boxes[:, :2]
        levels = np.clip(np.floor(np.log2(np.sqrt(sides.prod(1)) / 56 + 1e-6)), 0, 3)
        of_levels += [
            _steps(boxes[levels == level], stride, *TILES["roi_align"])
            for level, stride in enumerate(STRIDES)
        ]
    return {
        "roi_align": (round(np.mean(of_levels)),),
        "mask_targets": (_steps(proposals(rng, 128), 1, *TILES["mask_targets"]),),
        "nms": (-(-2000 // BLOCK), LOOKS),
        "assign": (OBJECTS,),
        "top_k": (),
        "sample": (),
    }


def _steps(boxes: np.ndarray, stride: int, side: int, at_once: int) -> int:
    """Steps over the tiles of boxes on a map."""
    cells = np.ceil((boxes[:, 2:] - boxes[:, :2]) / stride) + 1
    return int(np.ceil(np.ceil(cells / side).prod(1).sum() / at_once))


def job_for(topology: str) -> Job:
    """The run on a slice."""
    config = load_config(CONFIG, ["--config.model.dtype=bfloat16"])
    machine = parse_machine(topology)
    classes, examples = DATASETS["coco2017"]
    return Job(
        config,
        Variant(1, False),  # BatchNorm's notes cannot be computed twice
        machine,
        describe_devices(machine),
        classes,
        examples["train"],
        examples["validation"],
    )


def make_plan(topology: str) -> dict[str, Any]:
    """Compiles the step for a slice."""
    job = job_for(topology)
    scopes = rounds()
    plan = measure(job, scopes)
    if plan["fits"] and plan["bound_in"] is None:
        raise RunError(f"the compiler wrote no schedules for {topology}")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return plan | {"hbm": job.machine.chip.hbm, "rounds": scopes, "versions": versions}


def table(plans: dict[str, Any]) -> str:
    """Each plan, a line."""
    lines = [
        "| slice | images a chip | fits | memory, of | FLOP a chip | compute | RoIAlign | masks'"
        " targets | suppression | assigning | top-k, sampling | exchange | images/s | 36 epochs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for topology in PLANS:
        plan = plans.get(topology)
        if plan is None:
            lines.append(f"| {topology} | not compiled yet |" + " |" * 12)
            continue
        total = plan["memory"].get("total")
        room = "?" if total is None else f"{total / GIB:.2f}"
        fits = "yes" if plan["fits"] else "no"
        row = f"| {topology} | {plan['per_device_batch']} | {fits} |"
        row += f" {room} of {plan['hbm'] / GIB:.0f} GiB | {plan['flops'] / 1e12:.2f} T |"
        if plan["fits"]:
            row += f" {plan['compute_seconds'] * 1e3:.0f} ms |"
            for names in COLUMNS:
                seconds = sum(plan["bound_in"].get(name, 0) for name in names)
                row += f" {seconds / plan['compute_seconds']:.1%} |"
            row += f" {plan['exchange_seconds'] * 1e3:.1f} ms | {plan['images_per_second']:,.0f} |"
            row += f" {plan['run']['steps'] / 3600:.1f} h |"
        lines.append(row if plan["fits"] else row + " |" * 9)
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection_plans", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--again", action="store_true", help="make plans anew that the file has")
    parser.add_argument("--only", choices=PLANS, help="make this one")
    arguments = parser.parse_args()
    chosen = [arguments.only] if arguments.only else PLANS
    with exit_in_one_sentence():
        plans = json.loads(FILE.read_text()) if FILE.exists() else {}
        for topology in chosen:
            if topology not in plans or arguments.again:
                print(f"compiling for {topology}", flush=True)
                plans[topology] = make_plan(topology)
                FILE.write_text(json.dumps(plans, indent=1) + "\n")
        PAGE.write_text(rewrite(PAGE.read_text(), {"plans": table(plans)}))


if __name__ == "__main__":
    main()
