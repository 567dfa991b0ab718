"""Draws the pictures of README and docs from result files: `python -m benchmarks.pictures`.

`--measure` first writes `benchmarks/results/trajectory.json`: the losses of the 200 steps in which
`tests/training/test_trajectory.py` follows PyTorch and timm (needs the test packages, and
PYTHONPATH=tests). The other files are those of the benchmarks.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")

import matplotlib.pyplot as plt

from benchmarks.readme import IMAGES, RESULTS, machine

TRAJECTORY = RESULTS / "trajectory.json"
# What the files of `benchmarks/models.py` call the contestants.
CONTESTANTS = {
    "ours": "convnext_jax",
    "timm": "timm, eager",
    "timm-compile": "timm, torch.compile",
    "nnx-naive": "plain Flax NNX",
}
COLOURS = ("#2563eb", "#ea580c", "#f59e0b", "#94a3b8")


def measure_trajectory() -> dict[str, Any]:
    """Runs the 200 steps here and in PyTorch; returns both losses."""
    # pyright: reportMissingImports=false
    import tempfile

    from training import test_trajectory as steps

    from convnext_jax.classification.mixup import Mixup

    with tempfile.TemporaryDirectory() as folder:
        batches = steps.read_batches(Path(folder))
        ours, _ = steps.ours(batches, Mixup(0.8, 1.0))
        theirs, _ = steps.theirs(batches, Mixup(0.8, 1.0))
    return {"ours": ours.tolist(), "theirs": theirs.tolist(), "machine": machine()}


def speed() -> plt.Figure:
    """Images a second beside peers, inference and training, float32."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
    for axis, (mode, title) in zip(
        axes, (("infer", "inference"), ("train", "training")), strict=True
    ):
        found = json.loads((RESULTS / f"convnext_tiny-{mode}-cpu-2-cores-float32.json").read_text())
        names = [name for name in CONTESTANTS if name in found["contestants"]]
        rates = [
            found["batch"] / np.median(found["contestants"][name]["rounds_seconds_per_step"])
            for name in names
        ]
        bars = axis.barh([CONTESTANTS[name] for name in names], rates, color=COLOURS)
        axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(rates))
        axis.set_title(f"ConvNeXt-T, {title}: images a second", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        f"{found['hardware']}; float32, batch {found['batch']}, 224 pixels", fontsize=8
    )
    return figure


def trajectory() -> plt.Figure:
    """The losses of 200 steps here and in PyTorch, and how far they are apart."""
    found = json.loads(TRAJECTORY.read_text())
    ours, theirs = np.array(found["ours"]), np.array(found["theirs"])
    steps = np.arange(1, len(ours) + 1)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(9, 4), height_ratios=(3, 2), sharex=True, layout="constrained"
    )
    upper.plot(steps, theirs, color=COLOURS[1], linewidth=4, alpha=0.5, label="PyTorch and timm")
    upper.plot(steps, ours, color=COLOURS[0], linewidth=1, label="convnext_jax")
    upper.set_ylabel("training loss")
    upper.legend(frameon=False)
    # Where both are the same float32 there is nothing to draw on a logarithmic axis.
    apart = np.maximum(np.abs(ours - theirs) / theirs, 1e-8)
    lower.semilogy(steps, apart, color=COLOURS[3])
    lower.set_ylabel("relative difference")
    lower.set_xlabel("step, with mixup and CutMix, from the same weights on the same batches")
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def save(figure: plt.Figure, name: str) -> None:
    """Writes a figure as SVG, the same file from the same numbers, and closes it."""
    IMAGES.mkdir(exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "convnext_jax"
    file = IMAGES / f"{name}.svg"
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    # Lines of matplotlib's end in spaces.
    file.write_text("".join(f"{line.rstrip()}\n" for line in file.read_text().splitlines()))
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="run the 200 steps first; minutes")
    if parser.parse_args().measure:
        TRAJECTORY.write_text(json.dumps(measure_trajectory(), indent=1) + "\n")
    save(speed(), "speed")
    save(trajectory(), "trajectory")


if __name__ == "__main__":
    main()
