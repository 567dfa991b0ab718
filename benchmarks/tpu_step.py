"""What the forms of operations for TPUs are worth: `python -m benchmarks.tpu_step [--again]`.

Compiles a training step of ConvNeXt-T, 128 images a chip, for a v5e slice through
`python -m convnext_jax.plan`, minutes each: as XLA has it, with the GELU for bfloat16, and with the
depthwise convolution by matrices too. No clock has seen any of it. Writes
`benchmarks/results/tpu_step.json` and its part of docs/performance.md; plans that the file has are
kept.
"""

import argparse
import json
import os
from typing import Any
from unittest import mock

from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.scaling import make_plan
from convnext_jax.planning.machines import GIB

FILE = RESULTS / "tpu_step.json"
PAGE = ROOT / "docs" / "performance.md"
CONFIG, TOPOLOGY, IMAGES, CHIPS = "configs/imagenet1k.py:tiny", "v5e:2x2", 128, 4
# What is chosen by the environment, by the table's words for it; each is added to those above it.
FORMS = {
    "exact GELU, XLA's depthwise convolution": {
        "CONVNEXT_JAX_DEPTHWISE": "xla",
        "CONVNEXT_JAX_GELU": "erf",
    },
    "GELU by tanh": {"CONVNEXT_JAX_DEPTHWISE": "xla", "CONVNEXT_JAX_GELU": "auto"},
    "depthwise convolution by matrices": {
        "CONVNEXT_JAX_DEPTHWISE": "toeplitz",
        "CONVNEXT_JAX_GELU": "auto",
    },
}


def table(plans: dict[str, Any]) -> str:
    """Each form, a line."""
    lines = [
        "| added | at least | times as fast | schedules | memory | products | compiler's estimate |"
        " temporary memory | compiled in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(plans.values()), None)
    for name in FORMS:
        plan = plans.get(name)
        if plan is None or first is None:
            lines.append(f"| {name} | not compiled yet |" + " |" * 7)
            continue
        seconds = [plan[f"{part}_seconds"] for part in ("compute", "schedule", "memory", "matrix")]
        bound, *parts = (f"{each * 1e3:.1f} ms" for each in seconds)
        ratio = first["compute_seconds"] / plan["compute_seconds"]
        memory = plan["memory"]["temporary"] / GIB
        lines.append(
            f"| {name} | {bound} | {ratio:.2f} | {' | '.join(parts)} |"
            f" {plan['compiler_seconds'] * 1e3:.1f} ms | {memory:.2f} GiB |"
            f" {plan['compile_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--again", action="store_true", help="make all plans anew")
    plans = json.loads(FILE.read_text()) if FILE.exists() else {}
    if parser.parse_args().again:
        plans = {}
    for name, environment in FORMS.items():
        if name not in plans:
            batch = f"--config.data.global_batch={IMAGES * CHIPS}"
            with mock.patch.dict(os.environ, environment):
                plans[name] = make_plan(CONFIG, TOPOLOGY, options=(batch,)) | {
                    "environment": environment
                }
            FILE.write_text(json.dumps(plans, indent=1) + "\n")
    PAGE.write_text(rewrite(PAGE.read_text(), {"tpu step": table(plans)}))


if __name__ == "__main__":
    main()
