"""A task that no package knows: linear regression, whose model keeps the mean of what it saw.

Run as `regression.py WORKDIR [KEY=VALUE ...]`: trains it, as one of several processes where the
environment says so.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from convnext_jax import processes, sharding
from convnext_jax.config import from_dict
from convnext_jax.data.pipeline import Passes, train_batches
from convnext_jax.step_builder import step_of
from convnext_jax.training import loop
from convnext_jax.training.evaluator import Evaluator
from convnext_jax.training.mirror import Mirror
from convnext_jax.training.step import metric_names
from convnext_jax.training.stopwatch import Stopwatch
from convnext_jax.training.task import Evaluation, Metric, Task

# As many as fsdp splits.
INPUTS, OUTPUTS = 128, 128
EXAMPLES, HELD_OUT = 640, 40
METRIC = Metric("explained", "explained variance")


@dataclasses.dataclass(frozen=True)
class Points:
    """Points that a linear function explains, each from its index."""

    length: int
    first: int = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng((1, self.first + index))
        x = rng.normal(size=INPUTS).astype(np.float32)
        return x, x[::-1].copy()


class Rows:
    """Points as they are, in training with noise."""

    blank = {"x": np.zeros(INPUTS, np.float32), "y": np.zeros(OUTPUTS, np.float32)}

    def __call__(self, example, rng=None):
        x, y = example
        noise = 0 if rng is None else 0.01 * rng.normal(size=INPUTS)
        return {"x": np.float32(x + noise), "y": y}


class Spec:
    """What is asked of a model's description here."""

    depths = ()

    def abstract_params(self):
        return {"kernel": jax.ShapeDtypeStruct((INPUTS, OUTPUTS), jnp.float32)}

    def kernel_dtypes(self):
        return {}


@dataclasses.dataclass(frozen=True)
class Model:
    spec = Spec()


def loss(params, batch_stats, batch, key):
    del key
    rest = batch["y"] - batch["x"] @ params["kernel"]
    seen = {"mean": 0.9 * batch_stats["mean"] + 0.1 * batch["x"].mean(0), "n": batch_stats["n"] + 1}
    return (rest**2).mean(), seen, {"worst": jnp.abs(rest).max()}


def sums(params, batch_stats, batch):
    mask = batch["mask"].reshape(-1, 1)
    rest = batch["y"] - batch["x"] @ params["kernel"]
    return {
        "count": batch["mask"].sum(),
        "rest": (mask * rest**2).sum(),
        "all": (mask * batch["y"] ** 2).sum(),
        "seen": batch_stats["n"] * batch["mask"].sum(),
    }


def results(totals):
    return {
        "explained": float(1 - totals["rest"] / totals["all"]),
        "seen": float(totals["seen"] / totals["count"]),
    }


TASK = Task(
    model=Model(),  # pyright: ignore
    examples=Rows(),
    loss=loss,
    evaluation=Evaluation(Rows(), sums, results, METRIC),
    scalars=("worst",),
    batch_stats={"mean": np.zeros(INPUTS, np.float32), "n": np.float32(0)},
)


def build(**changes):
    """A run of 30 steps of 64 points, saved every 7, evaluated every 10; with keys that differ."""
    values = {
        "num_steps": 30,
        "eval_every_epochs": 1.0,
        "data": {"global_batch": 64},
        "optim": {"lr": 0.02, "warmup_steps": 2, "weight_decay": 0.0, "ema_decay": 0.8},
    }
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    config = from_dict(values)
    mesh = sharding.create_mesh(config.mesh.data, config.mesh.fsdp)
    step = step_of(TASK, config, mesh, EXAMPLES)
    rows = sharding.rows_of_this_process(mesh, 64)

    def initialize():
        params = jax.jit(lambda: {"kernel": jnp.zeros((INPUTS, OUTPUTS))})()
        return jax.jit(step.initial_state, out_shardings=step.state_shardings)(params)

    def batches(start):
        return train_batches(
            Points(EXAMPLES),
            TASK.examples,
            global_batch=64,
            seed=3,
            start_step=start,
            num_steps=step.steps.total,
            rows=rows,
        )

    held_out = Points(HELD_OUT, EXAMPLES)
    passes = Passes(held_out, TASK.evaluation.examples, global_batch=64, rows=rows)
    return loop.Run(
        mesh=mesh,
        abstract_state=step.abstract_state,
        state_shardings=step.state_shardings,
        initialize=initialize,
        train_step=step.function,
        evaluator=Evaluator(TASK.evaluation, passes, mesh=mesh),
        batches=batches,
        description={"config": {}},
        plan="a line",
        global_batch=64,
        steps_per_epoch=step.steps.per_epoch,
        total_steps=step.steps.total,
        evaluate_every=step.steps.evaluate_every,
        save_every=7,
        keep_last=2,
        log_every=1,
        profile_steps=0,
        tensorboard=False,
        log_parameters=False,
        stop_at_damage=False,
        hang_seconds=0,
        metrics=metric_names(TASK.scalars, config.log_batch_hashes),
        metric=METRIC,
        stopwatch=Stopwatch(),
    )


def train(run, workdir, preemption):
    workdir.mkdir(parents=True, exist_ok=True)
    directory = epath.Path(workdir / "checkpoints")
    mirror = Mirror(workdir, directory)
    try:
        return loop.train(run, workdir, directory, preemption, mirror)
    finally:
        mirror.close()


if __name__ == "__main__":
    processes.join()
    preemption = processes.Preemption()
    with processes.ending_together():
        options = dict(argument.split("=") for argument in sys.argv[2:])
        run = build(**{key: int(value) for key, value in options.items()})
        train(run, Path(sys.argv[1]), preemption)
