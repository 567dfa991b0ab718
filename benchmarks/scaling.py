"""What runs cost from 8 to 4,096 chips, on paper: `python -m benchmarks.scaling [--again]`.

Compiles the steps of ConvNeXt-T, -B and -XL for TPU slices that need not be here, through
`python -m convnext_jax.plan`, minutes each; then extrapolates to other numbers of chips.
Plans that the results file has are kept, unless they are wanted again. Writes
`benchmarks/results/scaling.json`, and what `benchmarks.scaling_page` makes of it.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.readme import RESULTS, ROOT
from convnext_jax.config import Config
from convnext_jax.config_files import load_config
from convnext_jax.planning.machines import CHIPS, Machine, parse_machine
from convnext_jax.planning.whole_run import whole_run

FILE = RESULTS / "scaling.json"
RUNS = {
    "T": "configs/imagenet1k.py:tiny",
    "B": "configs/imagenet1k.py:base",
    "XL": "configs/imagenet22k.py:xlarge",
}
# Examples of the runs' training and evaluation splits.
EXAMPLES = {"T": 1_281_167, "B": 1_281_167, "XL": 14_197_122 - 50_000}
HELD_OUT = 50_000
SLICES = ("v4:4x4x8", "v5e:16x16", "v6e:16x16")
# Run, slice, chips along fsdp. The first two: what fsdp exchanges, and whether other numbers of
# images a chip follow from those of a larger slice.
PLANS = [
    ("XL", "v5e:16x16", 16),
    ("T", "v5e:4x4", 1),
    *((run, topology, 1) for topology in SLICES for run in RUNS),
]
# The plan that is made in haste, too; the results have it under `quick`.
QUICK = ("T", "v5e:4x4", 1)
# Chips of the largest slice that is sold, by Cloud TPU's documentation.
LARGEST_SLICE = {"v4": 4096, "v5e": 256, "v6e": 256}
CHIP_COUNTS = tuple(2**n for n in range(3, 13))
# Bytes that the update reads and writes a parameter, all float32: reads gradient, parameter, two
# moments, moving average; writes all but the first.
UPDATE_BYTES = 4 * (5 + 4)


def key(run: str, topology: str, fsdp: int) -> str:
    """Of a plan in the results."""
    return f"{run} {topology} {'replicated' if fsdp == 1 else f'fsdp {fsdp}'}"


def make_plan(
    config: str, topology: str, fsdp: int = 1, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Compiles a config's step in bfloat16 for a slice or GPUs, with further options; minutes.

    Raises:
      subprocess.CalledProcessError: the plan failed; it said why.
    """
    command = [sys.executable, "-m", "convnext_jax.plan", "--config", config]
    command += ["--topology", topology, "--fsdp", str(fsdp), "--no-remat", "--compilations", "1"]
    command += ["--json", "--config.model.dtype=bfloat16", *options]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    plan = json.loads(done.stdout)
    (variant,) = plan.pop("variants")
    compiler = "jax-cuda12-pjrt" if topology.startswith("gpu:") else "libtpu"
    versions = {name: importlib.metadata.version(name) for name in ("jax", compiler)}
    return plan | variant | {"versions": versions}


def at(run: str, plans: list[dict[str, Any]], kind: str, chips: int) -> dict[str, float]:
    """A replicated run on another number of chips.

    What a step computes is its update, which takes as long as the memory needs for it, and a part
    for its images. The latter is known at the numbers of images a chip of the plans: between two it
    goes on a straight line, outside in proportion. Then comes the exchange, a ring's: its bytes do
    not depend on the number of chips, except for the share (n - 1) / n. Nothing overlaps.

    Args:
      run: a key of `RUNS`.
      plans: of the run and kind of chip, at least one.
      kind: of chip.
      chips: how many; those of more than a slice can have are in several.

    Returns:
      `images_per_chip`; seconds of a step: `update`, `compute` with it, `exchange`, `step`;
      `images_per_second`; of the run `step_hours`, and `hours` with start, evaluations and saves.
    """
    plan, chip = plans[0], CHIPS[kind]
    update = UPDATE_BYTES * plan["memory"]["parameters"] / 4 / chip.bandwidth
    images = plan["global_batch"] / chips
    # Images of a chip at once: a step of several micro-batches takes so many times as long.
    known = sorted(
        (
            found["per_device_batch"],
            (found["compute_seconds"] - update) / found["micro_batches"],
        )
        for found in plans
    )
    counts, seconds = np.array(known).T
    at_once = min(max(images, counts[0]), counts[-1])
    compute = update + np.interp(at_once, counts, seconds) * images / at_once
    reduced = plan["memory"]["parameters"]  # the gradients, in float32
    slices = math.ceil(chips / LARGEST_SLICE[kind])
    of_slice = chips / slices
    exchange = 2 * (of_slice - 1) / of_slice * reduced / chip.link
    if slices > 1:
        # Each chip of a slice has a part of the sum, and exchanges it with one of each other slice.
        exchange += 2 * (slices - 1) / slices * reduced / of_slice / chip.network
    step = compute + exchange
    machine = Machine("", kind, chip, chips, slices)
    config = config_of(run)
    lengths = plan | {"compute_seconds": compute, "step_seconds": step}
    whole = whole_run(config, config.steps(EXAMPLES[run]), machine, lengths, HELD_OUT)
    return {
        "images_per_chip": images,
        "update": update,
        "compute": compute,
        "exchange": exchange,
        "step": step,
        "images_per_second": plan["global_batch"] / step,
        "step_hours": whole["steps"] / 3600,
        "hours": whole["hours"],
    }


@functools.cache
def config_of(run: str) -> Config:
    """What `make_plan` plans."""
    return load_config(str(ROOT / RUNS[run]), ["--config.model.dtype=bfloat16"])


def replicated_plans(plans: dict[str, Any], run: str, kind: str) -> list[dict[str, Any]]:
    """Those of a run on a kind of chip that fit, the one of a whole slice first."""
    names = [key(*p) for p in reversed(PLANS) if p[0] == run and p[1].startswith(kind + ":")]
    found = [plans[name] for name in names if name.endswith("replicated") and name in plans]
    return [plan for plan in found if plan["fits"]]


def whole_of(run: str, topology: str, plan: dict[str, Any]) -> dict[str, Any]:
    """What `whole_run` says of a plan as it is."""
    seconds = plan["compute_seconds"] + plan["exchange_seconds"]
    config = config_of(run)
    lengths = plan | {"step_seconds": seconds}
    steps = config.steps(EXAMPLES[run])
    return whole_run(config, steps, parse_machine(topology), lengths, HELD_OUT)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--again", action="store_true", help="make all plans anew")
    parser.add_argument("--only", type=int, help="make at most so many plans")
    arguments = parser.parse_args()
    plans = json.loads(FILE.read_text()) if FILE.exists() and not arguments.again else {}
    missing = [plan for plan in PLANS if key(*plan) not in plans]
    for run, topology, fsdp in missing[: arguments.only]:
        print(key(run, topology, fsdp), flush=True)
        plans[key(run, topology, fsdp)] = make_plan(RUNS[run], topology, fsdp)
        FILE.write_text(json.dumps(plans, indent=2) + "\n")
    if "quick" not in plans:
        run, topology, fsdp = QUICK
        plans["quick"] = make_plan(RUNS[run], topology, fsdp, ["--quick"])
        FILE.write_text(json.dumps(plans, indent=2) + "\n")
    subprocess.run([sys.executable, "-m", "benchmarks.scaling_page"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
