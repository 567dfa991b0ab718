"""How long a model takes to be there: `python -m benchmarks.creating [--rounds 7]`.

In fresh processes without a compilation cache that take turns: importing, and then `create_model`
until its parameters are on the device, beside timm's. Writes
`benchmarks/results/creating-DEVICE.json` and its part of docs/performance.md.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.check import this_device, warn_if_busy
from benchmarks.readme import RESULTS, ROOT, rewrite

MODELS = ("convnext_tiny", "convnext_xlarge", "upernet_convnext_tiny")
PAGE = ROOT / "docs" / "performance.md"
# What the project promises: seconds after importing.
LIMITS = {"convnext_tiny": 1.0, "convnext_xlarge": 6.0}

_PROGRAMS = {
    "ours": """
import time
began = time.perf_counter()
import jax
import convnext_jax
jax.devices()  # which a program asks for once, whatever it makes
imported = time.perf_counter()
from flax import nnx
model = convnext_jax.create_model({model!r})
jax.block_until_ready(nnx.state(model))
print(imported - began, time.perf_counter() - imported)
""",
    "timm": """
import time
from benchmarks.models import import_timm
_, timm = import_timm()
imported = time.perf_counter()
timm.create_model({model!r})
print(0, time.perf_counter() - imported)
""",
}


def once(contestant: str, model: str) -> list[float]:
    """Seconds of importing (only of ours) and of creating, in a process of its own."""
    program = _PROGRAMS[contestant].format(model=model)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(number) for number in done.stdout.split()[-2:]]


def measure(rounds: int) -> dict[str, Any]:
    """Medians of all models and contestants, which take turns."""
    runs: dict[str, dict[str, list[list[float]]]] = {}
    for number in range(rounds + 1):
        for model in MODELS:
            for contestant in _PROGRAMS:
                if contestant == "timm" and model.startswith("upernet"):
                    continue  # it has none
                found = once(contestant, model)
                if number:  # the first brings the files into memory
                    runs.setdefault(model, {}).setdefault(contestant, []).append(found)
    return {
        model: {
            contestant: {
                "import_seconds": statistics.median(one for one, _ in found),
                "create_seconds": statistics.median(two for _, two in found),
                "create_seconds_most": max(two for _, two in found),
            }
            for contestant, found in of_model.items()
        }
        for model, of_model in runs.items()
    }


def table(result: dict[str, Any]) -> str:
    """The part of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['hardware']}; {versions}; medians of {result['rounds']} processes:",
        "",
        "| model | contestant | importing | creating | slowest | ours / it |",
        "|---|---|---|---|---|---|",
    ]
    for model, found in result["models"].items():
        for contestant, row in found.items():
            ratio = found["ours"]["create_seconds"] / row["create_seconds"]
            imports = f"{row['import_seconds']:.1f} s" if contestant == "ours" else ""
            lines.append(
                f"| `{model}` | {contestant} | {imports} | {row['create_seconds']:.2f} s |"
                f" {row['create_seconds_most']:.2f} s | {ratio:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.creating", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="directory of the results; the table stays")
    arguments = parser.parse_args()
    device = this_device()
    warn_if_busy(device["threads"])
    libraries = ("jax", "flax", "numpy", "torch", "timm")
    result = {
        **device,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "rounds": arguments.rounds,
        "limits": LIMITS,
        "models": measure(arguments.rounds),
    }
    result["ratios"] = {
        f"timm's {model}": found["timm"]["create_seconds"] / found["ours"]["create_seconds"]
        for model, found in result["models"].items()
        if "timm" in found
    }
    file = (arguments.out or RESULTS) / f"creating-{device['device']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.out is None:
        PAGE.write_text(rewrite(PAGE.read_text(), {"creating": table(result)}))
    late = {
        model: result["models"][model]["ours"]["create_seconds"]
        for model, limit in LIMITS.items()
        if result["models"][model]["ours"]["create_seconds"] > limit
    }
    if late:
        raise SystemExit(f"later than promised: {late}")


if __name__ == "__main__":
    main()
