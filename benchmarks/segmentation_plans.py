"""What UPerNet needs on TPU slices: `python -m benchmarks.segmentation_plans [--again]`.

Compiles the training steps of `configs/ade20k.py` for slices that need not be here, through
`python -m convnext_jax.plan`, minutes each; plans that the results file has are kept. Writes
`benchmarks/results/segmentation_plans.json` and the table of docs/segmentation.md.
"""

import argparse
import json
from typing import Any

from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.scaling import make_plan
from convnext_jax.planning.machines import GIB

FILE = RESULTS / "segmentation_plans.json"
PAGE = ROOT / "docs" / "segmentation.md"
# Run of configs/ade20k.py, and slice: 2 and 4 images a chip of the paper's 16.
PLANS = [("tiny", "v5e:2x4"), ("base", "v5e:2x4"), ("tiny", "v5e:2x2"), ("base", "v5e:2x2")]


def table(plans: dict[str, Any]) -> str:
    """Each plan, a line."""
    lines = [
        "| run | slice | images a chip | fits | memory, of | FLOP a chip | step | images/s |"
        " 160,000 steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, topology in PLANS:
        plan = plans.get(f"{run} {topology}")
        if plan is None:
            lines.append(f"| {run} | {topology} | not compiled yet |" + " |" * 6)
            continue
        room = f"{plan['memory']['total'] / GIB:.2f} of {plan['hbm'] / GIB:.0f} GiB"
        fits = "yes" if plan["fits"] else "no"
        row = f"| {run} | {topology} | {plan['per_device_batch']} | {fits} | {room} |"
        if plan["fits"]:
            seconds = plan["compute_seconds"] + plan["exchange_seconds"]
            row += f" {plan['flops'] / 1e12:.2f} T | {seconds * 1e3:.0f} ms |"
            row += f" {plan['images_per_second']:,.0f} | {160_000 * seconds / 3600:.1f} h |"
        lines.append(row if plan["fits"] else row + " |" * 4)
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="make all plans anew")
    plans = json.loads(FILE.read_text()) if FILE.exists() else {}
    if parser.parse_args().again:
        plans = {}
    for run, topology in PLANS:
        if f"{run} {topology}" not in plans:
            plans[f"{run} {topology}"] = make_plan(f"configs/ade20k.py:{run}", topology)
            FILE.write_text(json.dumps(plans, indent=1) + "\n")
    PAGE.write_text(rewrite(PAGE.read_text(), {"plans": table(plans)}))


if __name__ == "__main__":
    main()
