"""Measures what a results file says once more, in short rounds, for `benchmarks.check`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


def measure_forms_again(result: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Runs `benchmarks.cpu_forms`; returns the new result."""
    del result
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.cpu_forms", f"--rounds={rounds}"]
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
    "cpu_forms": measure_forms_again,
    "input": measure_input_again,
}
