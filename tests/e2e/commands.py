"""Runs the project's commands as users do, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A model that compiles and trains in seconds, yet has every kind of parameter and, with 2**14
# elements, two that fsdp splits.
TINY = ("--config.model.depths=(1,1,1,1)", "--config.model.dims=(8,16,32,64)")


def environment(data_dir, cache_dir, devices=1):
    """Environment variables for a command: CPU, `devices` of them, a cache of programs."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "TFDS_DATA_DIR": str(data_dir),
    }


def train_command(workdir, *overrides, config="configs/digits.py"):
    return [
        *(sys.executable, "-m", "convnext_jax.main", "--config", config, "--workdir", str(workdir)),
        *("--config.tensorboard=False", *overrides),
    ]


def run(command, env, timeout=300):
    """Runs a command from the repository's root and returns it, whatever its status."""
    return subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def train(workdir, env, *overrides, **kwargs):
    """Trains to the end; fails with the command's output otherwise."""
    result = run(train_command(workdir, *overrides, **kwargs), env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def records(workdir):
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    """Training loss by step."""
    return {r["step"]: r["loss"] for r in records(workdir) if "loss" in r}
