"""Measures what a results file says once more, in short rounds, for `benchmarks.check`."""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import gpu_step, tpu_step
from benchmarks.readme import ROOT


def measure_again(result: Mapping[str, Any], rounds: int, round_seconds: float) -> dict[str, Any]:
    """Runs `benchmarks.models` with the settings of a results file; returns the new result."""
    command = [sys.executable, "-m", "benchmarks.models"]
    for name in ("model", "mode", "dtype", "batch", "image_size"):
        command.append(f"--{name.replace('_', '-')}={result[name]}")
    command += [f"--peers={','.join(result['ratios'])}"]
    command += [f"--rounds={rounds}", f"--round-seconds={round_seconds}"]
    command += [
        f"--{name.replace('_', '-')}" for name in ("thorough", "one_at_a_time") if result[name]
    ]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--out", folder], check=True, cwd=ROOT)
        return _only(folder)


def measure_detection_again(result: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Runs `benchmarks.detection` with the settings of a results file; returns the new result."""
    command = [sys.executable, "-m", "benchmarks.detection", f"--backbone={result['backbone']}"]
    command += [f"--size={result['size']}", f"--rounds={rounds}"]
    command += [f"--parts={','.join(result['modes'])}"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--out", folder], check=True, cwd=ROOT)
        return _only(folder)


def run_again(benchmark: str, result: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Runs a module of `benchmarks` that asks for no more; returns the new result."""
    del result
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", f"--rounds={rounds}"]
        subprocess.run([*command, "--out", folder], check=True, cwd=ROOT)
        return _only(folder)


def measure_input_again(result: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Runs `benchmarks.input` for what is beside timm in a results file; returns the new result."""
    command = [sys.executable, "-m", "benchmarks.input", "--parts=transforms"]
    command += [f"--images={result['images']}", f"--rounds={rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--out", folder], check=True, cwd=ROOT)
        return with_input_ratios(_only(folder))


def _only(folder: str) -> dict[str, Any]:
    (file,) = Path(folder).glob("*.json")
    return json.loads(file.read_text())


def with_input_ratios(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `benchmarks.input` with its `ratios` as the others have them."""
    return {
        **result,
        "ratios": {
            f"{peer} at {what}, {name}": found[f"ratio to {peer}"]
            for name, measured in result.get("transforms", {}).items()
            for what, found in measured.items()
            if what != "mean_bytes"
            for peer in ("timm", "timm, uint8")
        },
    }


# Of what `benchmarks.models` did not write, by the beginning of the files' names.
OTHERS: Mapping[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "detection": measure_detection_again,
    "cpu_forms": functools.partial(run_again, "cpu_forms"),
    "creating": functools.partial(run_again, "creating"),
    "input": measure_input_again,
}


# Of plans one is compiled again, which takes a minute or two each.
GPU_STEP = "T, H200"
TPU_CASE = next(case for case in tpu_step.CASES if not case.trains)


def plan_ratios(tpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How much shorter, or smaller, what was compiled is than it was before, by result file."""
    forms = tpu[str(TPU_CASE)]
    first, *_, last = (plan["compute_seconds"] for plan in forms.values())
    moved = [gpu[name][GPU_STEP]["bytes_accessed"] for name in ("before", "now")]
    return {
        tpu_step.FILE.name: {f"the exact and XLA's {TPU_CASE}, by schedules": first / last},
        gpu_step.FILE.name: {f"{GPU_STEP} as it was, by bytes": moved[0] / moved[1]},
    }


def plan_again(tpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The same of today's programs; `before` stays what it was."""
    *_, name = tpu[str(TPU_CASE)]
    forms = tpu[str(TPU_CASE)] | {name: tpu_step.compile_case(TPU_CASE, name)}
    now = {GPU_STEP: gpu_step.compile_step(GPU_STEP)}
    return plan_ratios({**tpu, str(TPU_CASE): forms}, {**gpu, "now": now})
