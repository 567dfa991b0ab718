"""The road from ResNet to ConvNeXt: `python -m benchmarks.roadmap [--measure] [--runs RUN ...]`.

`--measure` trains four of its networks, small, on the digits for 30 epochs; `--runs` takes the
results of finished runs of `configs/roadmap.py`, by their workdirs. Both go to
`benchmarks/results/roadmap.json`; then the tables of docs/roadmap.md and the figures
`docs/images/roadmap.svg` and `roadmap_digits.svg` are written anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from benchmarks.pictures import COLOURS, save
from benchmarks.readme import RESULTS, ROOT, machine, rewrite
from convnext_jax.models.flops import count_macs
from convnext_jax.models.spec import ModelSpec

FILE = RESULTS / "roadmap.json"
PAGE = ROOT / "docs" / "roadmap.md"
REGIMES = ("resnet50", "resnet200")
# Tables 10 and 11 of the paper. Of each step: for ResNet-50 top-1, its standard deviation over
# three seeds and GFLOPs; for ResNet-200 top-1 and GFLOPs.
PUBLISHED: dict[str, tuple[tuple[float, float | None, float], tuple[float, float]]] = {
    "original": ((76.13, None, 4.09), (78.20, 15.01)),
    "enhanced_recipe": ((78.82, 0.07, 4.09), (81.14, 15.01)),
    "stage_ratio": ((79.36, 0.07, 4.53), (81.33, 14.52)),
    "patchify_stem": ((79.51, 0.18, 4.42), (81.59, 14.38)),
    "depthwise_conv": ((78.28, 0.08, 2.35), (80.54, 7.23)),
    "increased_width": ((80.50, 0.02, 5.27), (81.85, 16.76)),
    "inverted_bottleneck": ((80.64, 0.03, 4.64), (82.64, 15.68)),
    "depthwise_first": ((79.92, 0.08, 4.07), (82.04, 14.63)),
    "kernel_5": ((80.35, 0.08, 4.10), (82.32, 14.70)),
    "kernel_7": ((80.57, 0.14, 4.15), (82.30, 14.81)),
    "kernel_9": ((80.57, 0.06, 4.21), (82.27, 14.95)),
    "kernel_11": ((80.47, 0.11, 4.29), (82.18, 15.13)),
    "gelu": ((80.62, 0.14, 4.15), (82.19, 14.81)),
    "fewer_activations": ((81.27, 0.06, 4.15), (82.71, 14.81)),
    "fewer_norms": ((81.41, 0.09, 4.15), (83.17, 14.81)),
    "layer_norm": ((81.47, 0.09, 4.46), (83.35, 14.81)),
    "separate_downsampling": ((81.97, 0.06, 4.49), (83.60, 15.35)),
}
# Tried and not kept.
ASIDE = ("kernel_5", "kernel_9", "kernel_11")
SWIN = (81.30, 83.50)
# Steps that the digits are trained on, at the size of ConvNeXt-Atto.
ON_DIGITS = ("enhanced_recipe", "inverted_bottleneck", "fewer_norms", "separate_downsampling")
_DEPTHS, _WIDTH = (2, 2, 6, 2), 40


def train(step: str, workdir: Path) -> dict[str, Any]:
    """Trains the digits for 30 epochs; returns top-1 and loss of each evaluation."""
    bottleneck = list(PUBLISHED).index(step) < list(PUBLISHED).index("inverted_bottleneck")
    dims = [_WIDTH * (4 if bottleneck else 1) * 2**stage for stage in range(4)]
    command = [sys.executable, "-m", "convnext_jax.main", "--config", "configs/digits.py"]
    command += ["--workdir", str(workdir), f"--config.model.name=roadmap_resnet50_{step}"]
    command += [f"--config.model.depths={_DEPTHS}", f"--config.model.dims={tuple(dims)}"]
    command += ["--config.model.layer_scale_init=0", "--config.optim.ema_decay=0"]
    command += ["--config.tensorboard=False"]
    subprocess.run(command, check=True, cwd=ROOT)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "eval_params_top1" in row]
    return {
        "epochs": [row["epoch"] for row in rows],
        "top1": [row["eval_params_top1"] for row in rows],
        "parameters": count(f"roadmap_resnet50_{step}", 10, depths=_DEPTHS, dims=tuple(dims))[0],
        "examples": json.loads((workdir / "summary.json").read_text())["final"]["params"][
            "num_examples"
        ],
    }


def count(name: str, num_classes: int = 1000, **overrides: Any) -> tuple[int, int]:
    """Parameters and multiply-accumulates at 224 pixels of a model."""
    spec = ModelSpec(name, num_classes, overrides)
    params, stats = spec.abstract_params(), spec.abstract_batch_stats()
    apply = spec.function_with_batch_stats()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    macs = count_macs(lambda params, stats, x: apply(params, stats, x)[0], params, stats, images)
    return sum(leaf.size for leaf in jax.tree.leaves(params)), macs


def result_of(workdir: Path) -> tuple[str, float]:
    """A finished run's model and its final top-1, percent."""
    summary = json.loads((workdir / "summary.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    what = (summary["dataset"], summary["eval_split"])
    sizes = {key: config["model"][key] for key in ("depths", "dims", "kernel_size")}
    if summary["model"].partition("_")[0] != "roadmap" or any(sizes.values()):
        raise SystemExit(f"{workdir} has {summary['model']}, {sizes}, which is not on the road")
    if what != ("imagenet2012", "validation"):
        raise SystemExit(f"{workdir} was evaluated on {what}, and must be on ImageNet's validation")
    return summary["model"], 100 * summary["final"][summary["evaluated"]]["top1"]


def table(own: dict[str, float]) -> str:
    """All steps: counts, published results, and one's own."""
    lines = [
        "| step | R-50: parameters | MACs | GFLOPs, published | top-1, published | here |"
        " R-200: parameters | MACs | GFLOPs, published | top-1, published | here |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for step, ((top1, deviation, gflops), (top1_200, gflops_200)) in PUBLISHED.items():
        row = [f"`{step}`"]
        for regime, said, published in (
            ("resnet50", f"{top1:.2f}" + (f" ± {deviation:.2f}" if deviation else ""), gflops),
            ("resnet200", f"{top1_200:.2f}", gflops_200),
        ):
            name = f"roadmap_{regime}_{step}"
            parameters, macs = count(name)
            row += [f"{parameters:,}", f"{macs / 1e9:.3f} G", f"{published:.2f}", said]
            row.append(f"{own[name]:.2f}" if name in own else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def digits_table(found: dict[str, Any]) -> str:
    """The small runs."""
    lines = ["| step | parameters | top-1 after 30 epochs |", "|---|---|---|"]
    lines += [
        f"| `{step}` | {run['parameters']:,} | {run['top1'][-1]:.2%} of {run['examples']} |"
        for step, run in found["runs"].items()
    ]
    return "\n".join([*lines, "", f"On {found['machine']}."])


def road(own: dict[str, float]) -> plt.Figure:
    """Figure 2 of the paper, from its tables: the accuracy of each step, and its operations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharey=True, layout="constrained")
    steps = list(PUBLISHED)
    places = range(len(steps))
    for number, (axis, regime) in enumerate(zip(axes, REGIMES, strict=True)):
        top1 = [PUBLISHED[step][number][0] for step in steps]
        gflops = [PUBLISHED[step][number][-1] for step in steps]
        colours = [COLOURS[3] if step in ASIDE else COLOURS[0] for step in steps]
        axis.barh(places, top1, color=colours, alpha=0.85)
        for place, (accuracy, operations) in enumerate(zip(top1, gflops, strict=True)):
            axis.text(
                accuracy, place, f" {accuracy:.1f}  ({operations:.1f} G)", va="center", size=8
            )
        mine = [(own.get(f"roadmap_{regime}_{step}"), place) for place, step in enumerate(steps)]
        mine = [(value, place) for value, place in mine if value is not None]
        if mine:
            axis.scatter(*zip(*mine, strict=True), color=COLOURS[1], zorder=3, label="here")
        axis.axvline(SWIN[number], color=COLOURS[2], linestyle="--", linewidth=1)
        axis.text(SWIN[number], -0.9, ("Swin-T", "Swin-B")[number], size=8, ha="center")
        axis.set_xlim(min(top1) - 1, max(top1) + 2)
        axis.set_title(("ResNet-50 to ConvNeXt-T", "ResNet-200 to ConvNeXt-B")[number], fontsize=10)
        axis.set_xlabel("ImageNet-1K top-1, percent (multiply-accumulates)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [step.replace("_", " ") for step in steps])
    axes[0].invert_yaxis()
    return figure


def digits(found: dict[str, Any]) -> plt.Figure:
    """Held-out accuracy of the small runs over their epochs."""
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
    for (step, run), colour in zip(found["runs"].items(), COLOURS, strict=True):
        axis.plot(run["epochs"], [100 * x for x in run["top1"]], color=colour, label=step)
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1 of held-out digits, percent")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="train on the digits; 10 minutes")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="workdirs of your runs")
    arguments = parser.parse_args()
    results = json.loads(FILE.read_text()) if FILE.exists() else {"own": {}}
    if arguments.measure:
        with tempfile.TemporaryDirectory() as folder:
            runs = {step: train(step, Path(folder) / step) for step in ON_DIGITS}
        results["digits"] = {"runs": runs, "machine": machine()}
    results["own"] |= dict(map(result_of, arguments.runs))
    if "digits" not in results:
        raise SystemExit("--measure first: there are no results on the digits")
    FILE.write_text(json.dumps(results, indent=1) + "\n")
    parts = {"road": table(results["own"]), "digits": digits_table(results["digits"])}
    PAGE.write_text(rewrite(PAGE.read_text(), parts))
    save(road(results["own"]), "roadmap")
    save(digits(results["digits"]), "roadmap_digits")


if __name__ == "__main__":
    main()
