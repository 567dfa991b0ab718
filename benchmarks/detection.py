"""Measures Mask R-CNN over ConvNeXt-T beside torchvision's: `python -m benchmarks.detection`.

First the operations (`benchmarks.detection_ops`), then inference and a training step with an image
of 800 x 1333 pixels, float32, PyTorch eager, in the faster of its memory layouts. Both have the
same weights, which are random, and so the same proposals. Inference has 1000 proposals, about 1000
pairs of region and class that exceed the score threshold, and 100 masks; training 1000 proposals,
512 regions, and 128 masks, as objects are put where proposals are: `torchvision_detector.py` counts
what torchvision's heads are given, and ours must find the objects that torchvision's does. It is
measured as it is shipped, with two RoIAlign samples a bin and axis, and with ours, which has as
many as there are cells.

Each detector is in a process of its own; the two take turns, so that a busy machine slows both; a
ratio is the median of those of the rounds. Writes `benchmarks/results/detection-DEVICE.json` and
its part of docs/detection.md; of another size or backbone only with `--out`, into that directory.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import check
from benchmarks.detection_workers import OURS, SIZE, Setting, Worker, parse_size, serve
from benchmarks.models import ENVIRONMENT, names_of
from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.torchvision_detector import (
    CONTESTANTS,
    HEADS,
    SHIPPED,
    make_scene,
    parameters,
    read_scene,
)
from convnext_jax.constants import COCO_CLASSES
from convnext_jax.errors import RunError, exit_in_one_sentence
from convnext_jax.models.checks import require

PAGE = ROOT / "docs" / "detection.md"
MODES = ("infer", "train")
PARTS = ("operations", *MODES)
BACKBONE = "tiny"
# Ours at least: what the project promises beside torchvision as it is shipped, of images/s.
LEAST = {"infer": 1.2, "train": 1.0}
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "torch", "torchvision", "timm")


def measure(mode: str, rounds: int, folder: Path, flags: Sequence[str]) -> dict[str, Any]:
    """The records of all contestants, each with the seconds of its rounds, and the ratios."""
    workers = {role: Worker(role, mode, folder, flags) for role in (OURS, SHIPPED)}
    turns = {OURS: workers[OURS]} | dict.fromkeys(CONTESTANTS, workers[SHIPPED])
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    records: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for name, worker in turns.items():
            records[name] = worker.ask(name)
            if number:  # the first fills caches, of memory above all
                seconds[name].append(records[name].pop("seconds"))
    for worker in workers.values():
        worker.close()
    return summarise(records, seconds)


def summarise(
    records: Mapping[str, dict[str, Any]], seconds: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """What is kept of a mode."""
    for name, record in records.items():
        record |= {"rounds_seconds": seconds[name], "seconds": statistics.median(seconds[name])}
        record["images_per_second"] = 1 / record["seconds"]
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds[OURS], times, strict=True))
        for name, times in seconds.items()
        if name != OURS
    }
    return {"records": dict(records), "ratios": ratios}


def ratios_of(modes: Mapping[str, Any]) -> dict[str, float]:
    """Those of all modes, by contestant and mode."""
    return {
        f"{name}, {mode}": ratio
        for mode, found in modes.items()
        for name, ratio in found["ratios"].items()
    }


def table(results: Mapping[str, Any]) -> str:
    """The part of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"{results['hardware']}; {versions}; medians of {results['rounds']} rounds:", ""]
    if results["modes"]:
        lines += [
            f"| ConvNeXt-{results['backbone'].capitalize()}, {results['size']} pixels, float32 |"
            " detector | seconds | ours / it | regions, masks | peak memory | first step |",
            "|---|---|---|---|---|---|---|",
        ]
    for mode, found in results["modes"].items():
        for name, record in found["records"].items():
            ratio = f"{found['ratios'][name]:.2f}" if name in found["ratios"] else ""
            layout = record.get("memory_format", "").removesuffix("_format").replace("_", " ")
            # Ours has places for as many, filled or not.
            work = ", ".join(str(record.get(head, "")) for head in HEADS).strip(", ")
            lines.append(
                f"| {mode} | {name}{f' ({layout})' if layout else ''} | {record['seconds']:.2f} |"
                f" {ratio} | {work} |"
                f" {record['peak_memory_bytes'] / 2**30:.1f} GiB |"
                f" {record['first_step_seconds']:.0f} s |"
            )
    if results["operations"]:
        lines += ["", "| operation | ours | torchvision | ours / it |", "|---|---|---|---|"]
    for row in results["operations"]:
        cells = [f"{row['seconds'][name] * 1e3:.1f} ms" for name in ("ours", "torchvision")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def fell_short(results: Mapping[str, Any]) -> dict[str, float]:
    """Modes in which ours is less fast than promised, with the ratios."""
    found = {mode: part["ratios"][SHIPPED] for mode, part in results["modes"].items()}
    return {mode: ratio for mode, ratio in found.items() if ratio < LEAST[mode]}


def run(command: Sequence[str]) -> None:
    """Runs a module of this project; raises RunError where it fails, which has said why."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=os.environ | ENVIRONMENT)
    if done.returncode:
        raise RunError(f"python -m {' '.join(command)} ended with {done.returncode}")


def measure_all(arguments: argparse.Namespace, parts: Sequence[str]) -> dict[str, Any]:
    """Measures parts one after the other; returns what a results file holds."""
    device = check.this_device()
    check.warn_if_busy(device["threads"])
    flags = [f"--size={arguments.size}", f"--backbone={arguments.backbone}"]
    operations: list[Any] = []
    modes: dict[str, Any] = {}
    objects = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "operations" in parts:
            file = folder / "operations.json"
            run(["benchmarks.detection_ops", f"--out={file}"])
            operations = json.loads(file.read_text())
        chosen = [mode for mode in MODES if mode in parts]
        if chosen:
            run(["benchmarks.detection", *flags, "--role=scene", f"--folder={folder}"])
            objects = len(read_scene(folder)["boxes"])
        for mode in chosen:
            modes[mode] = measure(mode, arguments.rounds, folder, flags)
            print(f"{mode}: {modes[mode]['ratios']}", flush=True)
    return {
        **device,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "environment": ENVIRONMENT,
        "backbone": arguments.backbone,
        "size": arguments.size,
        "dtype": "float32",
        "batch": 1,
        "rounds": arguments.rounds,
        "objects": objects,
        "modes": modes,
        "operations": operations,
        "ratios": ratios_of(modes),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that are timed")
    parser.add_argument("--size", default=SIZE, help="of the image, height x width")
    parser.add_argument("--backbone", default=BACKBONE, help="of ConvNeXt, such as %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="any of %(default)s")
    parser.add_argument("--out", type=Path, help="directory for the results")
    parser.add_argument("--role", choices=(OURS, SHIPPED, "scene"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    with exit_in_one_sentence():
        parts = names_of("parts", flags.parts, PARTS)
        setting = Setting(flags.backbone, parse_size(flags.size))
        require(flags.rounds > 0, "rounds", flags.rounds, "be positive")
        if flags.role == "scene":
            params = parameters(setting.backbone, COCO_CLASSES)
            scene = make_scene(params, setting.backbone, COCO_CLASSES, setting.size, setting.canvas)
            np.savez(flags.folder / "scene.npz", **scene)  # pyright: ignore
            return
        if flags.role:
            serve(flags.role, parts[0], setting, flags.folder)
            return
        results = measure_all(flags, parts)
        whole = (flags.size, flags.backbone, set(parts)) == (SIZE, BACKBONE, set(PARTS))
        folder = RESULTS if flags.out is None and whole else flags.out
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"detection-{results['device']}.json"
            file.write_text(json.dumps(results, indent=2) + "\n")
        print(table(results))
        if folder is RESULTS:
            PAGE.write_text(rewrite(PAGE.read_text(), {"speed": table(results)}))
            if short := fell_short(results):
                raise RunError(f"ours is less fast than promised (={LEAST}): {short}")


if __name__ == "__main__":
    main()
