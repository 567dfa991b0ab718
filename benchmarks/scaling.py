"""What runs cost from 8 to 4,096 chips, on paper: `python -m benchmarks.scaling [--again]`.

Compiles the steps of ConvNeXt-T, -B and -XL for TPU slices that need not be here, through
`python -m convnext_jax.plan`, minutes each; then extrapolates to other numbers of chips.
Plans that the results file has are kept, unless they are wanted again. Writes
`benchmarks/results/scaling.json` and the tables of docs/scaling.md.
"""

import argparse
import importlib.metadata
import itertools
import json
import subprocess
import sys
from typing import Any

from benchmarks.check import this_device
from benchmarks.readme import RESULTS, ROOT, rewrite
from convnext_jax.machines import CHIPS, GIB, Chip

RUNS = {
    "T": "configs/imagenet1k.py:tiny",
    "B": "configs/imagenet1k.py:base",
    "XL": "configs/imagenet22k.py:xlarge",
}
SLICES = ("v4:4x4x8", "v5e:16x16", "v6e:16x16")
# Run, slice, chips along fsdp. The first two: what fsdp exchanges, and whether other numbers of
# images a chip follow from those of a larger slice.
PLANS = [
    ("XL", "v5e:16x16", 16),
    ("T", "v5e:4x4", 1),
    *((run, topology, 1) for topology in SLICES for run in RUNS),
]
CHIP_COUNTS = tuple(2**n for n in range(3, 13))
# What this project's hosts have: four chips each, in all three kinds of slices.
CHIPS_PER_HOST = 4
# Bytes that the update reads and writes a parameter, all float32: reads gradient, parameter, two
# moments, moving average; writes all but the first.
UPDATE_BYTES = 4 * (5 + 4)
# Assumed of the place where checkpoints go, from the one host that writes a replicated state.
CHECKPOINT_BYTES_PER_SECOND = 500e6


def key(run: str, topology: str, fsdp: int) -> str:
    """Of a plan in the results."""
    return f"{run} {topology} {'replicated' if fsdp == 1 else f'fsdp {fsdp}'}"


def make_plan(run: str, topology: str, fsdp: int) -> dict[str, Any]:
    """Compiles a step; minutes.

    Raises:
      subprocess.CalledProcessError: the plan failed; it said why.
    """
    command = [sys.executable, "-m", "convnext_jax.plan", "--config", RUNS[run]]
    command += ["--topology", topology, "--fsdp", str(fsdp), "--no-remat", "--compilations", "1"]
    command += ["--json", "--config.model.dtype=bfloat16"]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    plan = json.loads(done.stdout)
    (variant,) = plan.pop("variants")
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return plan | variant | {"versions": versions}


def at(plan: dict[str, Any], chip: Chip, chips: int) -> dict[str, float]:
    """A replicated run on another number of chips.

    What a step computes is its update, which takes as long as the memory needs for it, and a part
    in proportion to the images of a chip. Then comes the exchange, a ring's: its bytes do not
    depend on the number of chips, except for the share (n - 1) / n. Nothing overlaps.

    Args:
      plan: of the same run and kind of chip.
      chip: its figures.
      chips: how many.

    Returns:
      `images_per_chip`; seconds of a step: `update`, `compute` with it, `exchange`, `step`;
      `images_per_second`; `hours` of the run.
    """
    update = UPDATE_BYTES * plan["memory"]["parameters"] / 4 / chip.bandwidth
    images = plan["global_batch"] / chips
    share = images / (plan["global_batch"] / plan["chips"])
    images_work = (plan["compute_seconds"] - update) * share
    compute = update + images_work
    reduced = plan["collectives"]["all-reduce"]["bytes"]
    exchange = 2 * (chips - 1) / chips * reduced / chip.link
    step = compute + exchange
    return {
        "images_per_chip": images,
        "update": update,
        "compute": compute,
        "exchange": exchange,
        "step": step,
        "images_per_second": plan["global_batch"] / step,
        "hours": step * plan["steps"] / 3600,
    }


def plans_table(plans: dict[str, Any]) -> str:
    """Each plan, a line."""
    lines = [
        "| run | slice | images a chip | memory, of | FLOP a chip | all-reduce | other exchange |"
        " compute | exchange | images/s | whole run |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run, topology, fsdp in PLANS:
        layout = "" if fsdp == 1 else f", fsdp {fsdp}"
        plan = plans.get(key(run, topology, fsdp))
        if plan is None:
            lines.append(f"| {run}{layout} | {topology} |" + " not compiled yet |" + " |" * 8)
            continue
        room = f"{plan['memory']['total'] / GIB:.2f} of {plan['hbm'] / GIB:.0f} GiB"
        if not plan["fits"]:
            lines.append(f"| {run}{layout} | {topology} | {plan['per_device_batch']} | {room} |")
            continue
        totals = dict(plan["collectives"])
        reduced = totals.pop("all-reduce", {"count": 0, "bytes": 0})
        others = [f"{kind} {total['bytes'] / 1e6:.0f} MB" for kind, total in totals.items()]
        lines.append(
            f"| {run}{layout} | {topology} | {plan['per_device_batch']} x {plan['micro_batches']} |"
            f" {room} | {plan['flops'] / 1e12:.2f} T | {reduced['bytes'] / 1e6:.0f} MB |"
            f" {', '.join(others) or 'none'} | {plan['compute_seconds'] * 1e3:.1f} ms |"
            f" {plan['exchange_seconds'] * 1e3:.2f} ms | {plan['images_per_second']:,.0f} |"
            f" {plan['hours']:.1f} h |"
        )
    return "\n".join(lines)


def scaling_tables(plans: dict[str, Any], images_per_core: float) -> str:
    """Each run on each kind of chip, by number of chips."""
    parts = []
    for topology in SLICES:
        kind = topology.partition(":")[0]
        for run in RUNS:
            plan = plans.get(key(run, topology, 1))
            if plan is None or not plan["fits"]:
                continue
            parts.append(_scaling_table(run, kind, plan, images_per_core))
    return "\n\n".join(parts)


def _scaling_table(run: str, kind: str, plan: dict[str, Any], images_per_core: float) -> str:
    chip = CHIPS[kind]
    lines = [
        f"**ConvNeXt-{run} on {kind}**, batch {plan['global_batch']}, {plan['steps']:,} steps",
        "",
        "| chips | images a chip | compute | exchange | images/s | efficiency | whole run |"
        " images/s a host | cores a host |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = at(plan, chip, CHIP_COUNTS[0])["images_per_second"] / CHIP_COUNTS[0]
    for chips in CHIP_COUNTS:
        row = at(plan, chip, chips)
        host = row["images_per_second"] * CHIPS_PER_HOST / chips
        lines.append(
            f"| {chips:,} | {row['images_per_chip']:.0f} | {row['compute'] * 1e3:.1f} ms |"
            f" {row['exchange'] * 1e3:.2f} ms | {row['images_per_second']:,.0f} |"
            f" {row['images_per_second'] / chips / first:.0%} | {row['hours']:.1f} h |"
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
        plan = plans.get(key(run, topology, 1))
        if plan is None or not plan["fits"]:
            continue
        kind = topology.partition(":")[0]
        rows = {chips: at(plan, CHIPS[kind], chips) for chips in CHIP_COUNTS}
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
    """How far the extrapolation to other numbers of images a chip is from a plan of its own."""
    large, small = (plans.get(key("T", topology, 1)) for topology in ("v5e:16x16", "v5e:4x4"))
    if large is None or small is None:
        return "Not compiled yet."
    images = small["per_device_batch"]
    seconds = at(large, CHIPS["v5e"], large["global_batch"] // images)["compute"]
    actual = small["compute_seconds"] / small["micro_batches"]
    return (
        f"ConvNeXt-T with {images} images a chip: {seconds * 1e3:.0f} ms by extrapolation from"
        f" {large['per_device_batch']} images a chip, {actual * 1e3:.0f} ms by a plan of its own"
        f" (micro-batches: {small['micro_batches']})."
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
            f" {size / CHECKPOINT_BYTES_PER_SECOND:.0f} s |"
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
    for run, topology, fsdp in missing[: arguments.only]:
        print(key(run, topology, fsdp), flush=True)
        plans[key(run, topology, fsdp)] = make_plan(run, topology, fsdp)
        file.write_text(json.dumps(plans, indent=2) + "\n")
    measured = json.loads((RESULTS / f"input-{this_device()['device']}.json").read_text())
    per_core = measured["transforms"]["500x375"]["training, the whole recipe"]["images_per_second"]
    page = ROOT / "docs" / "scaling.md"
    parts = {
        "plans": plans_table(plans),
        "checked": checked(plans),
        "limits": limits_table(plans),
        "scaling": scaling_tables(plans, per_core["ours"]),
        "checkpoints": checkpoint_table(plans),
    }
    page.write_text(rewrite(page.read_text(), parts))


if __name__ == "__main__":
    main()
