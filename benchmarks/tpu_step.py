"""What the forms of operations for TPUs are worth: `python -m benchmarks.tpu_step [--again]`.

Compiles training steps of ConvNeXt with the whole recipe for TPU slices through
`python -m convnext_jax.plan`, and inference through `benchmarks.tpu_inference`, minutes each: as
XLA has it, with the GELU for bfloat16, and with the depthwise convolution by matrices too. No clock
has seen any of it. Writes `benchmarks/results/tpu_step.json` and its part of docs/performance.md;
what the file has is kept, unless it is wanted again. `--only N` compiles at most so many.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from typing import Any
from unittest import mock

from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.scaling import make_plan
from convnext_jax.planning.machines import GIB, parse_machine

FILE = RESULTS / "tpu_step.json"
PAGE = ROOT / "docs" / "performance.md"
# What is chosen by the environment, by the table's words for it; each is added to those above it.
FORMS = {
    "exact GELU, XLA's depthwise convolution": {
        "CONVNEXT_JAX_DEPTHWISE": "xla",
        "CONVNEXT_JAX_GELU": "erf",
    },
    "GELU by tanh": {"CONVNEXT_JAX_DEPTHWISE": "xla", "CONVNEXT_JAX_GELU": "auto"},
    # As it is by default for so many images.
    "depthwise convolution by matrices": {
        "CONVNEXT_JAX_DEPTHWISE": "auto",
        "CONVNEXT_JAX_GELU": "auto",
    },
    "its filters' gradients by matrices": {
        "CONVNEXT_JAX_DEPTHWISE": "toeplitz",
        "CONVNEXT_JAX_GELU": "auto",
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled in each form.

    Attributes:
      model: its short name.
      topology: a slice of the whole batch, or one of whose chips inference has one.
      images: a chip.
      trains: a training step, or else inference.
      forms: how many of `FORMS`.
    """

    model: str
    topology: str
    images: int
    trains: bool = True
    forms: int = len(FORMS)

    def __str__(self) -> str:
        """As the results and the table name it."""
        chip = self.topology.partition(":")[0]
        step = "training" if self.trains else "inference"
        return f"{self.model}, {step}, {chip}, {self.images} images"


CASES = (
    Case("tiny", "v5e:2x2", 128),
    # Two forms: for few images the compiler takes many minutes for matrices, which are slower then.
    Case("tiny", "v5e:16x16", 16, forms=2),
    Case("tiny", "v5e:2x2", 128, trains=False, forms=3),
    Case("tiny", "v5e:2x2", 8, trains=False, forms=2),
    Case("tiny", "v4:2x2x1", 128, trains=False, forms=3),
    Case("base", "v5e:2x2", 128, trains=False, forms=3),
    Case("xlarge", "v5e:2x2", 128, trains=False, forms=3),
    Case("tiny", "v4:2x2x1", 128, forms=3),
    Case("tiny", "v6e:2x2", 128, trains=False, forms=3),
)


def compile_case(case: Case, form: str) -> dict[str, Any]:
    """What is known of a case in one of `FORMS`; minutes.

    Raises:
      subprocess.CalledProcessError: it could not be compiled; the command said why.
    """
    with mock.patch.dict(os.environ, FORMS[form]):
        return _compile(case) | {"environment": FORMS[form]}


def _compile(case: Case) -> dict[str, Any]:
    if case.trains:
        batch = case.images * parse_machine(case.topology).size
        options = (f"--config.data.global_batch={batch}",)
        return make_plan(f"configs/imagenet1k.py:{case.model}", case.topology, options=options)
    command = [sys.executable, "-m", "benchmarks.tpu_inference", f"convnext_{case.model}"]
    command += [case.topology, str(case.images)]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Each case in each form, a line."""
    lines = [
        "| step | added | at least | times as fast | of peak | schedules | memory | products |"
        " compiler's estimate | temporary memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        plans = found.get(str(case), {})
        first = next(iter(plans.values()), None)
        for name in list(FORMS)[: case.forms]:
            plan = plans.get(name)
            if plan is None or first is None:
                lines.append(f"| {case} | {name} | not compiled yet |" + " |" * 7)
                continue
            seconds = [
                plan[f"{part}_seconds"] for part in ("compute", "schedule", "memory", "matrix")
            ]
            bound, *parts = (f"{each * 1e3:.1f} ms" for each in seconds)
            ratio = first["compute_seconds"] / plan["compute_seconds"]
            peak = plan["flops"] / parse_machine(case.topology).chip.peak / plan["compute_seconds"]
            lines.append(
                f"| {case} | {name} | {bound} | {ratio:.2f} | {peak:.0%} | {' | '.join(parts)} |"
                f" {plan['compiler_seconds'] * 1e3:.1f} ms |"
                f" {plan['memory']['temporary'] / GIB:.2f} GiB |"
            )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--again", action="store_true", help="compile all anew")
    parser.add_argument("--only", type=int, help="compile at most so many")
    arguments = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() and not arguments.again else {}
    missing = [
        (case, name)
        for case in CASES
        for name in list(FORMS)[: case.forms]
        if name not in found.get(str(case), {})
    ]
    for case, name in missing[: arguments.only]:
        print(f"{case}: {name}", flush=True)
        plans = found.get(str(case), {}) | {name: compile_case(case, name)}
        found[str(case)] = {form: plans[form] for form in FORMS if form in plans}
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(rewrite(PAGE.read_text(), {"tpu step": table(found)}))


if __name__ == "__main__":
    main()
