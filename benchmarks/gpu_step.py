"""What a training step does on GPUs that are not here: `python -m benchmarks.gpu_step`.

Compiles the step of ConvNeXt-T and -B, 128 images, for single GPUs through
`python -m convnext_jax.plan`, a minute or two each; bytes and kernels are those of the compiled
program. No clock has seen any of it, and nothing is tuned without the GPU. Writes
`benchmarks/results/gpu_step.json` and its part of docs/performance.md. `--as NAME` keeps the
figures under another name than `now`, of an older state of the code, say: `before`.
"""

import argparse
import json
import os
from typing import Any
from unittest import mock

from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.scaling import make_plan
from convnext_jax.planning.machines import GIB

FILE = RESULTS / "gpu_step.json"
PAGE = ROOT / "docs" / "performance.md"
IMAGES = 128
TINY, BASE = "configs/imagenet1k.py:tiny", "configs/imagenet1k.py:base"
# Config, GPU, and whose depthwise convolution.
STEPS = {
    "T, H200": (TINY, "gpu:1xH200", "auto"),
    "T, H200, our depthwise kernels": (TINY, "gpu:1xH200", "pallas"),
    "T, A100": (TINY, "gpu:1xA100", "auto"),
    "B, H200": (BASE, "gpu:1xH200", "auto"),
}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Each step, before and now."""
    lines = [
        "| step | | moved | kernels | of them below 1 MB | temporary memory | bytes allow |"
        " products allow | at least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for step in STEPS:
        for name, plans in found.items():
            if step not in plans:
                continue
            plan = plans[step]
            seconds = [plan[f"{part}_seconds"] for part in ("memory", "matrix", "compute")]
            lines.append(
                f"| {step} | {name} | {plan['bytes_accessed'] / 1e9:.1f} GB |"
                f" {plan['instructions']:,} | {plan['small_instructions']:,} |"
                f" {plan['memory']['temporary'] / GIB:.2f} GiB | "
                + " | ".join(f"{each * 1e3:.2f} ms" for each in seconds)
                + " |"
            )
    return "\n".join(lines)


def compile_step(step: str) -> dict[str, Any]:
    """What is known of one of `STEPS`; a minute or two."""
    config, topology, depthwise = STEPS[step]
    batch = f"--config.data.global_batch={IMAGES}"
    with mock.patch.dict(os.environ, {"CONVNEXT_JAX_DEPTHWISE": depthwise}):
        return make_plan(config, topology, options=(batch,))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--as", default="now", dest="name", help="what to keep the figures under")
    name = parser.parse_args().name
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for step in STEPS:
        found.setdefault(name, {})[step] = compile_step(step)
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(rewrite(PAGE.read_text(), {"gpu step": table(found)}))


if __name__ == "__main__":
    main()
