"""Executables that stand in for a cluster's own, first in the PATH, and what they wrote down."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
HERE = Path(__file__).parent
# A tool installed beside this Python.
SHELLCHECK = Path(sys.executable).with_name("shellcheck")

PYTHON = f"""
if [[ ${{1-}} == -m && ${{2-}} == convnext_jax.main ]]; then
  shift 2
  exec {shlex.quote(sys.executable)} -S {shlex.quote(str(HERE / "stand_in.py"))} "$@"
fi
exec {shlex.quote(sys.executable)} "$@"
"""


def install(folder, **scripts):
    """Writes executables into `folder`/bin, by name; each is the text of a bash script."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    for name, text in scripts.items():
        path = binaries / name
        path.write_text(f"#!/usr/bin/env bash\n{text.strip()}\n")
        path.chmod(0o755)
    return binaries


def environment(folder, plan, **variables):
    """The environment of a script: the stand-in for the program does `plan`, on CPUs."""
    (folder / "plan.json").write_text(json.dumps(plan))
    binaries = install(folder, python=PYTHON)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JAX_"))}
    return inherited | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "STAND_IN": str(folder),
        **variables,
    }


def run(command, env, timeout=120, cwd=ROOT):
    """Runs a command and returns it, whatever its status."""
    command = [str(part) for part in command]
    return subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def records(folder):
    """What each start of the stand-in recorded, in order."""
    path = folder / "records.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def joined(folder, count):
    """What each of `count` processes found when they met."""
    return [json.loads((folder / f"joined{i}.json").read_text()) for i in range(count)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        return str(listener.getsockname()[1])
