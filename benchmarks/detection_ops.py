"""Times RoIAlign, NMS and the assigner beside torchvision's: `python -m benchmarks.detection_ops`.

At the sizes of a step: a canvas of 800 x 1344, an image, maps of 256 channels; proposals crowded
around objects. torchvision has no assigner; its IoUs and mmdet's rules in PyTorch stand for it.
Both run in this process and take turns, so that a busy machine slows both; the ratio is the median
of the rounds' ratios. Results are compared, and a difference beyond rounding ends the program.
`benchmarks.detection` keeps the results. Needs a torchvision whose operations are compiled for the
CPU.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import import_timm
from convnext_jax.detection import anchors, matching
from convnext_jax.errors import RunError, exit_in_one_sentence
from convnext_jax.ops import roi_align as rois
from convnext_jax.ops.nms import nms

CANVAS, CHANNELS, STRIDES = (800, 1344), 256, (4, 8, 16, 32)
# Of features and gradients of order 1: places of up to 340 cells, in pixels' differences of up to
# 8, and sums of many boxes.
TOLERANCE = 2e-3


@dataclasses.dataclass
class Case:
    """One operation, done by both; `run` is started, and ends, with results on the CPU."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    difference: Callable[[], float]


def proposals(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes [count, 4] of 16 to 600 pixels within the canvas, half of them around 30 objects."""
    objects = rng.uniform(0, CANVAS[::-1], (30, 2))
    centres = objects[rng.integers(0, 30, count)] + rng.normal(0, 12, (count, 2))
    free = rng.uniform(size=(count, 1)) < 0.5
    centres = np.where(free, rng.uniform(0, CANVAS[::-1], (count, 2)), centres)
    side = np.exp(rng.uniform(np.log(16), np.log(600), (count, 1)))
    slant = np.exp(rng.normal(0, 0.3, (count, 1)))
    halves = np.concatenate([side * slant, side / slant], 1) / 2
    boxes = np.concatenate([centres - halves, centres + halves], 1)
    return np.clip(boxes, 0, (*CANVAS[::-1], *CANVAS[::-1])).astype(np.float32)


def largest(ours: Any, theirs: Any) -> float:
    """Largest difference of two arrays."""
    return float(np.abs(np.asarray(ours, np.float32) - np.asarray(theirs, np.float32)).max())


def feature_cases(torch: Any, torchvision: Any) -> Iterator[Case]:
    """RoIAlign from four levels: at test, in training, and its gradient."""
    rng = np.random.default_rng(0)
    shapes = [(CANVAS[0] // stride, CANVAS[1] // stride) for stride in STRIDES]
    maps = [rng.normal(size=(*shape, CHANNELS)).astype(np.float32) for shape in shapes]
    ours = [jnp.asarray(x)[None] for x in maps]
    sizes = [jnp.asarray([shape]) for shape in shapes]
    # torchvision's layout: each map contiguous with channels first.
    theirs = [torch.from_numpy(x.transpose(2, 0, 1).copy())[None] for x in maps]
    for count, out in ((1000, 7), (100, 14), (512, 7), (128, 14)):
        boxes = proposals(rng, count)
        levels = rois.box_levels(jnp.asarray(boxes))
        places = [np.flatnonzero(np.asarray(levels) == level) for level in range(4)]
        order = np.concatenate(places)

        def features(maps, boxes=boxes, levels=levels, out=out):
            found = rois.roi_align(
                maps, sizes, jnp.asarray(boxes)[None], levels[None], STRIDES, out
            )
            return found[0]

        def of_torchvision(boxes=boxes, places=places, out=out):
            return [
                torchvision.ops.roi_align(x, [torch.from_numpy(boxes[own])], out, 1 / s, 0, True)
                for x, s, own in zip(theirs, STRIDES, places, strict=True)
            ]

        run = jax.jit(features)

        def forward_difference(run=run, of_torchvision=of_torchvision, order=order):
            wanted = torch.cat(of_torchvision()).permute(0, 2, 3, 1)
            return largest(run(ours)[order], wanted)

        def ours_forward(run=run):
            return jax.block_until_ready(run(ours))

        name = f"RoIAlign, {count} boxes, {out} x {out}"
        yield Case(name, ours_forward, of_torchvision, forward_difference)
        if (count, out) not in ((512, 7), (128, 14)):
            continue
        dy = rng.normal(size=(count, out, out, CHANNELS)).astype(np.float32)
        their_dy = list(
            torch.from_numpy(dy[order].transpose(0, 3, 1, 2).copy()).split(
                [len(own) for own in places]
            )
        )
        for x in theirs:
            x.requires_grad_(True)
        their_features = of_torchvision()
        pullback = jax.jit(lambda maps, dy, features=features: jax.vjp(features, maps)[1](dy)[0])
        our_dy = jnp.asarray(dy)

        def ours_backward(pullback=pullback, our_dy=our_dy):
            return jax.block_until_ready(pullback(ours, our_dy))

        def theirs_backward(their_features=their_features, their_dy=their_dy):
            return torch.autograd.grad(their_features, theirs, their_dy, retain_graph=True)

        def backward_difference(ours_backward=ours_backward, theirs_backward=theirs_backward):
            pairs = zip(ours_backward(), theirs_backward(), strict=True)
            return max(largest(x, y.permute(0, 2, 3, 1)) for x, y in pairs)

        yield Case(f"gradient of it, {count}", ours_backward, theirs_backward, backward_difference)
        for x in theirs:
            x.requires_grad_(False)


def mask_cases(torch: Any, torchvision: Any) -> Iterator[Case]:
    """The targets of 128 boxes around 20 ellipses; torchvision's are given bitmaps in float32."""
    rng = np.random.default_rng(3)
    objects = proposals(rng, 20)
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]]
    centres, halves = (objects[:, :2] + objects[:, 2:]) / 2, (objects[:, 2:] - objects[:, :2]) / 2
    masks = np.stack(
        [
            ((x - cx) / (w + 1)) ** 2 + ((y - cy) / (h + 1)) ** 2 < 1
            for (cx, cy), (w, h) in zip(centres, halves, strict=True)
        ]
    )
    of = rng.integers(0, 20, 128)
    boxes = objects[of] + rng.normal(0, 4, (128, 4)).astype(np.float32)
    packed, run = jnp.asarray(np.packbits(masks, axis=-1))[None], jax.jit(rois.mask_targets)
    bitmaps = torch.from_numpy(masks).float()[:, None]
    their_boxes = torch.from_numpy(np.concatenate([of[:, None], boxes], 1).astype(np.float32))

    def ours() -> Any:
        return jax.block_until_ready(run(packed, boxes[None], of[None]))[0]

    def theirs() -> Any:
        return torchvision.ops.roi_align(bitmaps, their_boxes, 28, 1.0, 0, True)[:, 0]

    def difference() -> float:
        means = theirs().numpy()
        # Rounding decides on either side of 0.5.
        clear = np.abs(means - 0.5) > 1e-4
        return largest(ours()[clear], means[clear] >= 0.5)

    yield Case("targets of 128 masks, 28 x 28", ours, theirs, difference)


def nms_cases(torch: Any, torchvision: Any) -> Iterator[Case]:
    """Proposals of five levels, in training and at test."""
    rng = np.random.default_rng(1)
    for count in (2000, 1000):
        boxes = proposals(rng, 5 * count).reshape(5, count, 4)
        valid = np.ones((5, count), bool)
        run = jax.jit(lambda boxes, valid: nms(boxes, valid, 0.7))
        arguments = (
            torch.from_numpy(boxes.reshape(-1, 4)),
            torch.arange(count, 0, -1).float().repeat(5),
            torch.arange(5).repeat_interleave(count),
            0.7,
        )

        def theirs(arguments=arguments):
            return torchvision.ops.batched_nms(*arguments)

        def ours(run=run, boxes=boxes, valid=valid):
            return jax.block_until_ready(run(boxes, valid))

        def difference(ours=ours, theirs=theirs):
            kept = np.zeros(ours().size, bool)
            kept[theirs().numpy()] = True
            return largest(np.asarray(ours()).reshape(-1), kept)

        yield Case(f"NMS, 5 levels of {count}", ours, theirs, difference)


def assigner_cases(torch: Any, torchvision: Any) -> Iterator[Case]:
    """All anchors of the canvas and 12 objects, which is more than most images have."""
    rng = np.random.default_rng(2)
    boxes = jnp.concatenate(anchors.anchor_boxes(CANVAS, (*STRIDES, 64)))
    objects = proposals(rng, 100)
    valid, object_valid = jnp.ones(len(boxes), bool), jnp.arange(100) < 12
    rules = {"positive": 0.7, "negative": 0.3, "minimum": 0.3, "low_quality": True}
    run = jax.jit(lambda *arguments: matching.assign(*arguments, **rules))
    their_boxes = torch.from_numpy(np.array(boxes))
    their_objects = torch.from_numpy(objects[:12])

    def ours() -> Any:
        return jax.block_until_ready(run(boxes, valid, objects, object_valid))

    def theirs() -> Any:
        overlaps = torchvision.ops.box_iou(their_objects, their_boxes)
        (best, nearest), largest_of = overlaps.max(0), overlaps.max(1).values
        assigned = torch.full_like(nearest, matching.NEITHER)
        assigned[best < 0.3] = matching.NEGATIVE
        assigned = torch.where(best >= 0.7, nearest, assigned)
        for index in torch.nonzero(largest_of >= 0.3).flatten().tolist():
            assigned[overlaps[index] == largest_of[index]] = index
        return assigned

    yield Case("assigner, 268,569 anchors", ours, theirs, lambda: largest(ours(), theirs()))


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Compares the results, which compiles, and times both in turns."""
    difference = case.difference()
    if not difference <= TOLERANCE:
        raise RunError(f"{case.name}: the results differ by {difference:.1e}")
    seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for _ in range(rounds):
        for name, run in (("ours", case.ours), ("torchvision", case.theirs)):
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    pairs = zip(seconds["torchvision"], seconds["ours"], strict=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(their / our for their, our in pairs)
    return {"name": case.name, "seconds": medians, "ratio": ratio, "difference": difference}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each operation that are timed")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    torch, _ = import_timm()
    import torchvision
    from torchvision.extension import _has_ops

    with exit_in_one_sentence():
        if not _has_ops():
            raise RunError(
                "torchvision's operations cannot be used: it must be built for the same PyTorch, on"
                " a CPU the one of https://download.pytorch.org/whl/cpu"
            )
        rows = []
        for cases in (feature_cases, mask_cases, nms_cases, assigner_cases):
            for case in cases(torch, torchvision):
                rows.append(measure(case, rounds))
                seconds = rows[-1]["seconds"]
                print(
                    f"{case.name:>32} {seconds['ours'] * 1e3:8.1f} ms, torchvision"
                    f" {seconds['torchvision'] * 1e3:8.1f} ms, ratio {rows[-1]['ratio']:5.2f}",
                    flush=True,
                )
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
