"""What runs cost from 8 to 4,096 chips, on paper: `python -m benchmarks.scaling [--again]`.

Compiles the steps of ConvNeXt-T, -B and -XL for TPU slices that need not be here, through
`python -m convnext_jax.plan`, minutes each; then extrapolates to other numbers of chips.
Plans that the results file has are kept, unless they are wanted again. Writes
`benchmarks/results/scaling.json` and the tables of docs/scaling.md.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.check import this_device
from benchmarks.readme import RESULTS, ROOT, rewrite
from convnext_jax.config import Config
from convnext_jax.config_files import load_config
from convnext_jax.plan import PREPARED
from convnext_jax.planning.machines import CHIPS, GIB, Machine, parse_machine
from convnext_jax.planning.whole_run import WRITE_BYTES_PER_SECOND, feeding, whole_run

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
    config: str, topology: str, fsdp: int = 1, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Compiles a config's step in bfloat16 for a slice or GPUs, with further overrides; minutes.

    Raises:
      subprocess.CalledProcessError: the plan failed; it said why.
    """
    command = [sys.executable, "-m", "convnext_jax.plan", "--config", config]
    command += ["--topology", topology, "--fsdp", str(fsdp), "--no-remat", "--compilations", "1"]
    command += ["--json", "--config.model.dtype=bfloat16", *overrides]
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


def plans_table(plans: dict[str, Any]) -> str:
    """Each plan, a line."""
    lines = [
        "| run | slice | images a chip | memory, of | FLOP a chip | all-reduce | other exchange |"
        " compute | exchange | images/s | steps | whole run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, topology, fsdp in PLANS:
        layout = "" if fsdp == 1 else f", fsdp {fsdp}"
        plan = plans.get(key(run, topology, fsdp))
        if plan is None:
            lines.append(f"| {run}{layout} | {topology} |" + " not compiled yet |" + " |" * 9)
            continue
        room = f"{plan['memory']['total'] / GIB:.2f} of {plan['hbm'] / GIB:.0f} GiB"
        if not plan["fits"]:
            lines.append(f"| {run}{layout} | {topology} | {plan['per_device_batch']} | {room} |")
            continue
        totals = dict(plan["collectives"])
        reduced = totals.pop("all-reduce", {"count": 0, "bytes": 0})
        whole = whole_of(run, topology, plan)
        others = [f"{kind} {total['bytes'] / 1e6:.0f} MB" for kind, total in totals.items()]
        lines.append(
            f"| {run}{layout} | {topology} | {plan['per_device_batch']} x {plan['micro_batches']} |"
            f" {room} | {plan['flops'] / 1e12:.2f} T | {reduced['bytes'] / 1e6:.0f} MB |"
            f" {', '.join(others) or 'none'} | {plan['compute_seconds'] * 1e3:.1f} ms |"
            f" {plan['exchange_seconds'] * 1e3:.2f} ms | {plan['images_per_second']:,.0f} |"
            f" {whole['steps'] / 3600:.2f} h | {whole['hours']:.2f} h |"
        )
    return "\n".join(lines)


def runs_table(plans: dict[str, Any]) -> str:
    """What each planned run spends beside its steps."""
    lines = [
        "| run | slice | start | steps | evaluations | saves | whole run | one evaluation |"
        " one save, waited for | written beside |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, topology, fsdp in PLANS:
        plan = plans.get(key(run, topology, fsdp))
        if plan is None or not plan["fits"]:
            continue
        whole = whole_of(run, topology, plan)
        minutes = [f"{whole[name] / 60:.1f} min" for name in ("start", "steps")]
        for name, count in (("evaluations", "num_evaluations"), ("saves", "num_saves")):
            minutes.append(f"{whole[count]}: {whole[name] / 60:.1f} min")
        lines.append(
            f"| {run}{'' if fsdp == 1 else f', fsdp {fsdp}'} | {topology} | {' | '.join(minutes)} |"
            f" {whole['hours']:.2f} h | {whole['evaluation']:.2f} s | {whole['save']:.2f} s |"
            f" {whole['write']:.1f} s |"
        )
    return "\n".join(lines)


def data_table(plans: dict[str, Any]) -> str:
    """How each planned run is fed."""
    lines = [
        "| run | slice | images/s a host | decoded by its cores, at most | from a bucket |"
        " opening | copy to each host | best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, topology, fsdp in PLANS:
        plan = plans.get(key(run, topology, fsdp))
        if plan is None or not plan["fits"] or fsdp > 1:
            continue
        prepared = PREPARED[config_of(run).data.name]
        fed: dict[str, Any] = feeding(
            parse_machine(topology),
            "classification",
            plan["images_per_second"],
            *prepared,
            EXAMPLES[run],
        )
        lines.append(
            f"| {run} | {topology} | {fed['needed']:,.0f} | {fed['decoded']:,.0f} |"
            f" {fed['bucket']:,.0f} | {fed['opening_seconds'] / 60:.1f} min |"
            f" {fed['copy_seconds'] / 60:.1f} min | {fed['best']} |"
        )
    return "\n".join(lines)


def scaling_tables(plans: dict[str, Any], images_per_core: float) -> str:
    """Each run on each kind of chip, by number of chips."""
    parts = []
    for topology in SLICES:
        kind = topology.partition(":")[0]
        for run in RUNS:
            found = replicated_plans(plans, run, kind)
            if found:
                parts.append(_scaling_table(run, kind, found, images_per_core))
    return "\n\n".join(parts)


def _scaling_table(run: str, kind: str, plans: list[dict[str, Any]], images_per_core: float) -> str:
    chip, plan = CHIPS[kind], plans[0]
    lines = [
        f"**ConvNeXt-{run} on {kind}**, batch {plan['global_batch']}, {plan['steps']:,} steps",
        "",
        "| chips | images a chip | compute | exchange | images/s | efficiency | steps | whole run |"
        " images/s a host | cores a host |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = at(run, plans, kind, CHIP_COUNTS[0])["images_per_second"] / CHIP_COUNTS[0]
    for chips in CHIP_COUNTS:
        row = at(run, plans, kind, chips)
        host = row["images_per_second"] * chip.host.chips / chips
        lines.append(
            f"| {chips:,} | {row['images_per_chip']:.0f} | {row['compute'] * 1e3:.1f} ms |"
            f" {row['exchange'] * 1e3:.2f} ms | {row['images_per_second']:,.0f} |"
            f" {row['images_per_second'] / chips / first:.0%} |"
            f" {row['step_hours']:.2f} h | {row['hours']:.2f} h |"
            f" {host:,.0f} | {host / images_per_core:.1f} |"
        )
    return "\n".join(lines)


def limits_table(plans: dict[str, Any]) -> str:
    """Where each run stops to scale at its batch, and what takes the time then."""
    lines = [
        "| run | chip | 80 % up to | 50 % up to | images a chip there | at 4,096: images | update |"
        " exchange |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for topology, run in itertools.product(SLICES, RUNS):
        kind = topology.partition(":")[0]
        found = replicated_plans(plans, run, kind)
        if not found:
            continue
        rows = {chips: at(run, found, kind, chips) for chips in CHIP_COUNTS}
        rates = {chips: row["images_per_second"] / chips for chips, row in rows.items()}
        least = rates[CHIP_COUNTS[0]]
        upto = [max(n for n in CHIP_COUNTS if rates[n] >= part * least) for part in (0.8, 0.5)]
        last = rows[CHIP_COUNTS[-1]]
        shares = [(last["compute"] - last["update"]), last["update"], last["exchange"]]
        lines.append(
            f"| {run} | {kind} | {upto[0]:,} chips | {upto[1]:,} chips |"
            f" {rows[upto[0]]['images_per_chip']:.0f}, {rows[upto[1]]['images_per_chip']:.0f} | "
            + " | ".join(f"{share / last['step']:.0%}" for share in shares)
            + " |"
        )
    return "\n".join(lines)


def checked(plans: dict[str, Any]) -> str:
    """How far a table of one plan is from another plan, at its number of images a chip."""
    large, small = (plans.get(key("T", topology, 1)) for topology in ("v5e:16x16", "v5e:4x4"))
    if large is None or small is None:
        return "Not compiled yet."
    images = small["per_device_batch"]
    seconds = at("T", [large], "v5e", large["global_batch"] // images)["compute"]
    actual = small["compute_seconds"] / small["micro_batches"]
    return (
        f"The table of ConvNeXt-T on v5e has two plans, of {large['per_device_batch']} and {images}"
        f" images a chip. From the first alone a step of {images} images would take"
        f" {seconds * 1e3:.0f} ms instead of {actual * 1e3:.0f} ms, {seconds / actual - 1:.0%}"
        f" longer: so far off may the other tables be where a chip has eight times the images of"
        f" their plan, and more where it has fewer."
    )


def checkpoint_table(plans: dict[str, Any]) -> str:
    """Size of checkpoints, and how long they take."""
    lines = ["| run | parameters | checkpoint | written in |", "|---|---|---|---|"]
    for run in RUNS:
        found = [plans[k] for t in SLICES if (k := key(run, t, 1)) in plans]
        if not found:
            continue
        size = found[0]["checkpoint_bytes"]
        lines.append(
            f"| {run} | {found[0]['memory']['parameters'] / 4e6:.1f} M | {size / 1e9:.2f} GB |"
            f" {size / WRITE_BYTES_PER_SECOND:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="make all plans anew")
    parser.add_argument("--only", type=int, help="make at most so many plans")
    arguments = parser.parse_args()
    file = RESULTS / "scaling.json"
    plans = json.loads(file.read_text()) if file.exists() and not arguments.again else {}
    missing = [plan for plan in PLANS if key(*plan) not in plans]
    if missing and any("compute_from" not in plan for plan in plans.values()):
        print("warning: kept plans are by the compiler's own estimate: make all with --again")
    for run, topology, fsdp in missing[: arguments.only]:
        print(key(run, topology, fsdp), flush=True)
        plans[key(run, topology, fsdp)] = make_plan(RUNS[run], topology, fsdp)
        file.write_text(json.dumps(plans, indent=2) + "\n")
    measured = json.loads((RESULTS / f"input-{this_device()['device']}.json").read_text())
    per_core = measured["transforms"]["500x375"]["training, the whole recipe"]["images_per_second"]
    page = ROOT / "docs" / "scaling.md"
    parts = {
        "plans": plans_table(plans),
        "runs": runs_table(plans),
        "data": data_table(plans),
        "checked": checked(plans),
        "limits": limits_table(plans),
        "scaling": scaling_tables(plans, per_core["ours"]),
        "checkpoints": checkpoint_table(plans),
    }
    page.write_text(rewrite(page.read_text(), parts))


if __name__ == "__main__":
    main()
