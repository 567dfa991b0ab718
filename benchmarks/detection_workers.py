"""The processes of `benchmarks.detection`: each takes steps of a detector when it is asked to."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import check
from benchmarks.models import ENVIRONMENT, import_timm
from benchmarks.readme import ROOT
from benchmarks.torchvision_detector import (
    LEARNING_RATE,
    SHIPPED,
    parameters,
    peer,
    read_scene,
    steps,
)
from convnext_jax.constants import COCO_CLASSES
from convnext_jax.errors import InputError, RunError

OURS = "ours"
SIZE = "800x1333"
# Of 100 detections, those that ours must find too, to a tenth of a pixel. Rounding decides about
# some near the threshold, or about which of two overlapping ones is kept.
SAME = 90


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
      backbone: of ConvNeXt, such as tiny.
      size: height and width of the image in pixels, landscape.
    """

    backbone: str
    size: tuple[int, int]

    @property
    def canvas(self) -> tuple[int, int]:
        """The next multiples of 32."""
        height, width = (-(-side // 32) * 32 for side in self.size)
        return height, width


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `HEIGHTxWIDTH`; raises InputError unless it is so."""
    sides = text.split("x")
    right = len(sides) == 2 and all(side.isdecimal() for side in sides)
    if not right or not 128 <= int(sides[0]) <= int(sides[1]):
        raise InputError(
            f"`size` (={text}) must be height x width, such as {SIZE}, at least 128 pixels and not"
            " taller than wide"
        )
    return int(sides[0]), int(sides[1])


def ours(setting: Setting, scene: Mapping[str, np.ndarray], mode: str) -> Callable[[], Any]:
    """A step of this project's: the evaluation's function, or the training step of a run."""
    import jax

    from convnext_jax import sharding
    from convnext_jax.config import from_dict
    from convnext_jax.detection.task import detection
    from convnext_jax.step_builder import step_of

    height, width = setting.size
    config = from_dict(
        {
            "num_steps": 1000,
            "model": {"name": f"mask_rcnn_convnext_{setting.backbone}"},
            "data": {"global_batch": 1},
            "detection": {
                "short_sides": (height,),
                "longest_side": width,
                "score_threshold": float(scene["threshold"]),
            },
            "optim": {
                "label_smoothing": 0.0,
                "ema_decay": 0.0,
                "warmup_steps": 1,
                "lr": LEARNING_RATE,
                "min_lr": LEARNING_RATE,
            },
        }
    )
    task = detection(config, COCO_CLASSES, 1)
    params = jax.device_put(parameters(setting.backbone, COCO_CLASSES))
    if mode == "infer":
        row = {"image": scene["image"], "size": scene["size"], "portrait": np.int32(0)}
        batch = jax.device_put({name: np.asarray(value)[None] for name, value in row.items()})
        function = jax.jit(task.evaluation.found)
        return lambda: jax.block_until_ready(function(params, {}, batch))
    batch = {name: np.asarray(value)[None].copy() for name, value in task.examples.blank.items()}
    count = len(scene["boxes"])
    for name in ("image", "size"):
        batch[name][0] = scene[name]
    for name in ("boxes", "labels", "masks"):
        batch[name][0, :count] = scene[name]
    mesh = sharding.create_mesh()
    step = step_of(task, config, mesh, 1000)
    # Where the step leaves its state, or the second step would be compiled anew.
    state = [jax.jit(step.initial_state, out_shardings=step.state_shardings)(params)]
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))

    def train() -> Any:
        state[0], metrics = jax.block_until_ready(step.function(state[0], batch))
        return metrics

    return train


def same_detections(found: Mapping[str, Any], scene: Mapping[str, np.ndarray]) -> int:
    """How many of the scene's detections are among those found, a tenth of a pixel off at most."""
    boxes, labels = np.asarray(found["boxes"][0]), np.asarray(found["labels"][0])
    off = np.abs(scene["found_boxes"][:, None] - boxes).max(-1)
    return int(((off < 0.1) & (scene["found_labels"][:, None] == labels)).any(1).sum())


def serve_ours(setting: Setting, mode: str, folder: Path) -> Callable[[str], dict[str, Any]]:
    """Compiles; returns what answers a request with the seconds of a step."""
    scene = read_scene(folder)
    step = ours(setting, scene, mode)
    began = time.perf_counter()
    found = step()
    record: dict[str, Any] = {"first_step_seconds": time.perf_counter() - began}
    step()
    if mode == "infer":
        record["same_detections"] = same_detections(found, scene)
        if record["same_detections"] < SAME:
            raise RunError(
                f"only {record['same_detections']} detections of {len(scene['found_labels'])} are"
                " the other's: the two do not have the same to do"
            )

    def answer(_: str) -> dict[str, Any]:
        return record | {"seconds": _seconds(step), "peak_memory_bytes": check.peak_memory(False)}

    return answer


def serve_torchvision(setting: Setting, mode: str, folder: Path) -> Callable[[str], dict[str, Any]]:
    """The same of torchvision's, with the RoIAlign asked for, in the faster memory layout."""
    torch, _ = import_timm()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = parameters(setting.backbone, COCO_CLASSES)
    made = peer(params, setting.backbone, COCO_CLASSES, read_scene(folder))
    del params
    tried, first = {}, {}
    for name in ("channels_last", "contiguous_format"):
        made.lay_out(getattr(torch, name))
        step = steps(made, mode)
        first[name] = _seconds(step)
        tried[name] = min(_seconds(step) for _ in range(2))
    fastest = min(tried, key=lambda name: tried[name])
    made.lay_out(getattr(torch, fastest))
    step = steps(made, mode)
    step()
    record = {
        "first_step_seconds": first[fastest],
        "memory_format": fastest,
        "memory_format_seconds": tried,
    }

    def answer(contestant: str) -> dict[str, Any]:
        made.choose(contestant)
        found = {"seconds": _seconds(step), "peak_memory_bytes": check.peak_memory(True)}
        return record | found | made.model.work

    return answer


def _seconds(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


class Worker:
    """A process with one of the two detectors; to be closed."""

    def __init__(self, role: str, mode: str, folder: Path, flags: Sequence[str]):
        """Starts it, and waits until it is ready; raises RunError if it ends before."""
        command = [sys.executable, "-m", "benchmarks.detection", *flags, f"--role={role}"]
        self._role = role
        self._process = subprocess.Popen(
            [*command, f"--parts={mode}", f"--folder={folder}"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def ask(self, contestant: str) -> dict[str, Any]:
        """One step; returns what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{contestant}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(f"the process of {self._role} ended with {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(role: str, mode: str, setting: Setting, folder: Path) -> None:
    """A worker's process: prepares, and takes a step for each contestant that its input names."""
    make = {OURS: serve_ours, SHIPPED: serve_torchvision}[role]
    answer = make(setting, mode, folder)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)
