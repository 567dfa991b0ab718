"""Runs the project's commands as users do, in processes of their own."""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from e2e.forks import Forks
from PIL import Image
from quick_compilation import xla_flags
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]

# A model that compiles and trains in seconds, yet has every kind of parameter and, with 2**14
# elements, two that fsdp splits. Filters of 7x7 would be half of what there is to compile.
TINY = (
    "--config.model.depths=(1,1,1,1)",
    "--config.model.dims=(8,16,32,64)",
    "--config.model.kernel_size=3",
)


def on_folders(images):
    """Overrides that train on `write_digit_folders`'s images."""
    return (
        "--config.data.name=folder",
        f"--config.data.dir={images}",
        "--config.data.train_split=train",
        "--config.data.eval_split=val",
        "--config.data.global_batch=16",
    )


def environment(data_dir, cache_dir, devices=1):
    """Environment variables for a command: CPU, `devices` of them, a cache of programs."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "TFDS_DATA_DIR": str(data_dir),
    }


def train_command(workdir, *overrides, config="configs/digits.py"):
    return [
        *(sys.executable, "-m", "convnext_jax.main", "--config", config, "--workdir", str(workdir)),
        # Few tests look at these, and they take seconds.
        *("--config.tensorboard=False", "--config.report_examples=0", *overrides),
    ]


def command_of(name, *arguments):
    """Another of the project's commands."""
    return [sys.executable, "-m", f"convnext_jax.{name}", *map(str, arguments)]


_FORKS: list[Forks] = []


def start(command, env):
    """Starts a command from the repository's root, as `subprocess.Popen` with captured text."""
    if list(command[:2]) == [sys.executable, "-m"]:
        forks = next((forks for forks in _FORKS if forks.can_run(command, env)), None)
        if forks is None and len(_FORKS) < 2:  # each has half a gigabyte
            forks = Forks(env, ROOT)
            atexit.register(forks.close)
            _FORKS.append(forks)
        if forks is not None:
            return forks.start(command, env)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def run(command, env, timeout=300):
    """Runs a command from the repository's root and returns it, whatever its status."""
    process = start(command, env)
    try:
        printed, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, printed, errors)


def train(workdir, env, *overrides, timeout=300, **kwargs):
    """Trains to the end; fails with the command's output otherwise."""
    result = run(train_command(workdir, *overrides, **kwargs), env, timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def records(workdir):
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    """Training loss by step."""
    return {r["step"]: r["loss"] for r in records(workdir) if "loss" in r}


def hashes(workdir):
    """The number of each batch, by step, of a run that logged them."""
    return {r["step"]: r["batch_hash"] for r in records(workdir) if "loss" in r}


def saved(workdir):
    """Names of a run's checkpoints, those half written included."""
    folder = workdir / "checkpoints"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def evaluated(workdir, step):
    """Whether a checkpoint has its evaluation's results."""
    return (workdir / "checkpoints" / str(step) / "evaluation.json").exists()


def start_processes(workdir, env, count, *overrides, devices=1, **kwargs):
    """Starts one run as `count` processes of `devices` virtual devices each."""
    return start_together(train_command(workdir, *overrides, **kwargs), env, count, devices)


def start_together(command, env, count, devices=1):
    """Starts a command as `count` processes that meet, of `devices` virtual devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    return [
        start(
            command,
            env
            | {
                "XLA_FLAGS": xla_flags(devices),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
        )
        for index in range(count)
    ]


def end_of(processes, timeout=300):
    """Waits for processes; returns (status, stdout, stderr) of each."""
    deadline = time.monotonic() + timeout
    try:
        ends = [p.communicate(timeout=max(deadline - time.monotonic(), 1)) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


def last_step(workdir):
    """The last step that a run has recorded; 0 before the first."""
    try:
        return records(workdir)[-1]["step"]
    except (FileNotFoundError, IndexError, ValueError):  # not begun, or a line half written
        return 0


def wait_for(processes, condition, timeout=300):
    """Waits until `condition()` holds; fails with their output if a process ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline or any(p.poll() is not None for p in processes):
            raise AssertionError(end_of(processes, timeout=20))
        time.sleep(0.002)


def write_digit_folders(root, count):
    """Writes the first digits as two classes of images, `ROOT/{train,val}/{0,1}/*.png`."""
    pixels, labels = load_digits(return_X_y=True)
    for row in range(count):
        folder = root / ("val" if row % 5 == 0 else "train") / str(labels[row] % 2)
        folder.mkdir(parents=True, exist_ok=True)
        image = (pixels[row].reshape(8, 8) * 15).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{row}.png")


def arrays(workdir, step):
    """Everything that a checkpoint holds, read without the project's code."""
    found = {}
    reader = ocp.PyTreeCheckpointer()
    for item in ("params", "batch_stats", "ema", "ema_batch_stats", "optimizer"):
        folder = workdir / "checkpoints" / str(step) / item
        if not folder.exists():
            continue
        # As NumPy arrays, whatever devices and processes wrote them.
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            reader.metadata(folder).item_metadata.tree,
        )
        tree = reader.restore(folder, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def assert_identical(workdir, expected, step):
    """Checks that two runs ended with the same bits."""
    found, wanted = arrays(workdir, step), arrays(expected, step)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
