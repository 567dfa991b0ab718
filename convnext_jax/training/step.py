"""One optimiser step as a pure function of state and batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from convnext_jax.training.state import TrainState
from convnext_jax.training.task import Batch, Loss

# What a step of any task reports, and the scalars of the task after it.
METRICS = ("loss", "learning_rate", "gradient_norm", "parameter_norm", "update_norm")
# Comes last where the run asks for it.
BATCH_HASH = "batch_hash"


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    seed: int,
    ema_decay: float | None = None,
    accumulation_steps: int = 1,
    scalars: Sequence[str] = (),
    batch_hashes: bool = False,
    trained: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Builds the training step; the caller jits it with its shardings.

    Args:
      loss: the task's, see `training.task`.
      optimizer: the update rule, which already contains the learning rate.
      learning_rate: the same schedule again, for the report.
      seed: step k draws its randomness from (seed, k) alone.
      ema_decay: decay of the moving average after each step; None where the state has none.
      accumulation_steps: micro-batches that one step averages the gradient of. Each is mixed by
        itself, as in the reference, and sees the batch statistics that the one before it left.
      scalars: names of what the loss reports beside itself.
      batch_hashes: also report a hash of the batch as it was read.
      trained: tree of bool like the parameters. What is False, and its moving average, keeps its
        value; no gradient of it is computed, nor of what only it needs. None: all are trained.

    Returns:
      A function (state, batch) -> (state, metrics). The arrays of the batch have N rows, N a
      multiple of `accumulation_steps`; metrics is float32 [M], in the order of
      `metric_names(scalars, batch_hashes)`, where the loss and the gradient norm are those before
      the update and the parameter norm that after it.
    """

    def with_aux(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        if trained is not None:
            # Before anything is done with them, so that no device sends zeros to another either.
            params = jax.tree.map(
                lambda value, moves: value if moves else jax.lax.stop_gradient(value),
                params,
                trained,
            )
        value, batch_stats, others = loss(params, batch_stats, batch, key)
        return value, (batch_stats, {name: others[name] for name in scalars})

    value_and_grad = jax.value_and_grad(with_aux, has_aux=True)

    def gradient(params: Any, batch_stats: Any, batch: Batch, key: jax.Array) -> Any:
        """((loss, scalars), gradients), means over the micro-batches; and new batch statistics."""
        if accumulation_steps == 1:
            (value, (batch_stats, others)), found = value_and_grad(params, batch_stats, batch, key)
            return ((value, others), found), batch_stats

        def add_micro_batch(carry: Any, micro: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            (total, batch_stats), (index, micro_batch) = carry, micro
            (value, (batch_stats, others)), found = value_and_grad(
                params, batch_stats, micro_batch, jax.random.fold_in(key, index)
            )
            total = jax.tree.map(jnp.add, total, ((value, others), found))
            return (total, batch_stats), None

        nothing = (jnp.zeros(()), {name: jnp.zeros(()) for name in scalars})
        zeros = (nothing, jax.tree.map(jnp.zeros_like, params))
        indices = jnp.arange(accumulation_steps)
        micro_batches = jax.tree.map(lambda x: _split(x, accumulation_steps), batch)
        (total, batch_stats), _ = jax.lax.scan(
            add_micro_batch, (zeros, batch_stats), (indices, micro_batches)
        )
        return jax.tree.map(lambda x: x / accumulation_steps, total), batch_stats

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        ((value, others), gradients), batch_stats = gradient(
            state.params, state.batch_stats, batch, key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema, ema_batch_stats = state.ema, state.ema_batch_stats
        if ema_decay is not None:
            averaged = optax.incremental_update(params, ema, step_size=1 - ema_decay)
            # The average of one value is that value, which rounding would not leave it.
            ema = averaged
            if trained is not None:
                ema = jax.tree.map(
                    lambda moves, new, old: new if moves else old, trained, averaged, state.ema
                )
            if jax.tree.leaves(batch_stats):
                ema_batch_stats = optax.incremental_update(
                    batch_stats, ema_batch_stats, step_size=1 - ema_decay
                )
        metrics = others | {
            "loss": value,
            "learning_rate": learning_rate(state.step),
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        if batch_hashes:
            metrics[BATCH_HASH] = batch_hash(batch)
        names = metric_names(scalars, batch_hashes)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            opt_state=opt_state,
            batch_stats=batch_stats,
            ema_batch_stats=ema_batch_stats,
        )
        return new_state, jnp.stack([jnp.float32(metrics[name]) for name in names])

    return train_step


def metric_names(scalars: Sequence[str], batch_hashes: bool) -> tuple[str, ...]:
    """The names of what a step reports, in their order."""
    return (*METRICS, *scalars, *([BATCH_HASH] if batch_hashes else []))


def batch_hash(batch: Batch) -> jax.Array:
    """A number that tells batches apart, in whole numbers, so the same on any number of devices.

    Args:
      batch: arrays [N, ...] of whole numbers, or of float32.

    Returns:
      float32 scalar, a whole number below 2**24, which float32 holds exactly.
    """
    of_row = jnp.uint32(0)
    for number, name in enumerate(sorted(batch)):
        found = batch[name]
        floating = jnp.issubdtype(found.dtype, jnp.floating)
        bits = jax.lax.bitcast_convert_type(found, jnp.uint32) if floating else found
        # Odd factors, so that no bit of a value is lost, and other ones at each place and row.
        places = jnp.arange(found[0].size, dtype=jnp.uint32).reshape(1, *found.shape[1:])
        factors = (places * jnp.uint32(2654435761) + jnp.uint32(number * 2246822519 % 2**32)) | 1
        axes = tuple(range(1, found.ndim))
        of_row += (bits.astype(jnp.uint32) * factors.reshape(1, *found.shape[1:])).sum(
            axes, dtype=jnp.uint32
        )
    rows = jnp.arange(len(of_row), dtype=jnp.uint32)
    of_row = (of_row ^ (of_row >> 15)) * (rows * jnp.uint32(3266489917) | 1)
    return (of_row.sum(dtype=jnp.uint32) >> 8).astype(jnp.float32)


def first_micro_batch(
    seed: int, step: jax.typing.ArrayLike, batch: Batch, accumulation_steps: int
) -> tuple[Batch, jax.Array]:
    """What the loss is given first in a step: a micro-batch and its key; as `make_train_step`."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    if accumulation_steps == 1:
        return batch, key
    batch = jax.tree.map(lambda x: _split(x, accumulation_steps)[0], batch)
    return batch, jax.random.fold_in(key, 0)


def _split(rows: jax.Array, parts: int) -> jax.Array:
    """[N, ...] -> [parts, N / parts, ...], part p with rows p, p + parts, p + 2 parts, ...

    Strided, so that each device's contiguous rows give every part its share and nothing moves
    between devices.
    """
    return jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0)
