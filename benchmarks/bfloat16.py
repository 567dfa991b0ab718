"""A bfloat16 run beside a float32 run: `python -m benchmarks.bfloat16`, minutes.

The digits with the settings of `configs/digits.py`, from the same weights, on the same batches and
with the same draws: 200 steps in float32, in bfloat16, and in bfloat16 with gradients summed in
bfloat16; and in float32 with other draws, for how much that alone changes. Eight virtual devices,
so that there is something to sum. Writes `benchmarks/results/bfloat16.json` and the table of
docs/training.md.
"""

import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from flax import nnx

from benchmarks.readme import RESULTS, ROOT, machine, rewrite
from convnext_jax import sharding
from convnext_jax.config_files import load_config
from convnext_jax.data.pipeline import train_batches
from convnext_jax.data.sources import open_source
from convnext_jax.models.spec import params_of
from convnext_jax.step_builder import build_step

FILE = RESULTS / "bfloat16.json"
SMALLER = ("--config.model.depths=(1,1,2,1)", "--config.model.dims=(16,32,48,64)")
RUNS = {
    "float32": (),
    "bfloat16": ("--config.model.dtype=bfloat16",),
    "bfloat16, summed so": (
        "--config.model.dtype=bfloat16",
        "--config.optim.gradient_sum=bfloat16",
    ),
    "float32, other draws": ("--config.seed=1",),
}
# Losses are compared as means of so many steps: a run's own losses scatter more from step to step.
WINDOW = 20


def losses(steps: int, devices: int, *overrides: str) -> list[float]:
    """Trains for a number of steps; returns the loss of each, rounded to six places."""
    config = load_config(str(ROOT / "configs/digits.py"), [*SMALLER, *overrides])
    source = open_source(config.data.name, config.data.train_split, config.data.dir)
    mesh = sharding.create_mesh(devices=jax.devices()[:devices])
    step = build_step(config, mesh, source.num_classes, len(source))
    place = step.state_shardings
    draw = jax.jit(
        lambda key: step.initial_state(params_of(step.task.model.spec.create(nnx.Rngs(key)))),
        out_shardings=place,
    )
    # The weights and the batches are those of one seed, in all runs.
    state, found = draw(jax.random.key(0)), []
    with train_batches(
        source,
        step.task.examples,
        global_batch=config.data.global_batch,
        seed=0,
        start_step=0,
        num_steps=steps,
    ) as batches:
        for rows in batches:
            state, metrics = step.function(state, sharding.global_batch(rows, mesh))
            found.append(round(float(metrics[0]), 6))
    return found


def compare(
    steps: int, *overrides: str, runs: tuple[str, ...] = ("float32", "bfloat16"), devices: int = 8
) -> dict[str, list[float]]:
    """The losses of each step, by run.

    Args:
      steps: how many.
      overrides: for all runs.
      runs: keys of `RUNS`.
      devices: how many, of those that there are.
    """
    return {name: losses(steps, devices, *overrides, *RUNS[name]) for name in runs}


def difference(found: dict[str, list[float]], name: str) -> float:
    """How far a run's losses are from those in float32, relative to these.

    The largest difference of means over `WINDOW` steps.
    """
    exact, other = (
        np.convolve(found[run], np.full(WINDOW, 1 / WINDOW), "valid") for run in ("float32", name)
    )
    return float((np.abs(other - exact) / exact).max())


def table(found: dict[str, list[float]]) -> str:
    """Each run, a line."""
    lines = [
        f"| run | loss of the first step | mean of the last {WINDOW} | largest difference of means"
        f" of {WINDOW} from float32 |",
        "|---|---|---|---|",
    ]
    for name, run in found.items():
        apart = "" if name == "float32" else f"{difference(found, name):.2%}"
        lines.append(f"| {name} | {run[0]:.4f} | {np.mean(run[-WINDOW:]):.4f} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    found = compare(200, runs=tuple(RUNS))
    FILE.write_text(json.dumps({"machine": machine(), "losses": found}, indent=1) + "\n")
    page = ROOT / "docs" / "training.md"
    page.write_text(rewrite(page.read_text(), {"bfloat16": table(found)}))


if __name__ == "__main__":
    main()
