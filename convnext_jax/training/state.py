"""What a training run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes; randomness is not here, it follows from (seed, step).

    Attributes:
      step: optimiser steps taken, int32 scalar.
      params: parameter tree, float32.
      ema: moving average of `params`, or None where the run keeps none.
      opt_state: the optimiser's moments and counts.
      batch_stats: what the model keeps of the batches it saw, such as BatchNorm's running mean and
        variance; empty for most models. No gradient, decay or norm of parameters sees it.
      ema_batch_stats: its moving average, None where `ema` is.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: optax.OptState
    batch_stats: Any = dataclasses.field(default_factory=dict)
    ema_batch_stats: Any = None

    def candidates(self) -> dict[str, tuple[Any, Any]]:
        """Parameters and batch statistics of what can be evaluated: `params`, and `ema` if kept."""
        found = {"params": (self.params, self.batch_stats)}
        return found if self.ema is None else found | {"ema": (self.ema, self.ema_batch_stats)}


def initial_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    with_ema: bool,
    batch_stats: Any = None,
) -> TrainState:
    """The state before the first step.

    Args:
      params: parameter tree.
      optimizer: gives its own first state.
      with_ema: whether to keep a moving average, which starts as a copy of the parameters.
      batch_stats: the model's; None: it has none.
    """
    batch_stats = {} if batch_stats is None else batch_stats
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy, because the step donates both and XLA refuses one buffer donated twice.
        ema=jax.tree.map(jnp.copy, params) if with_ema else None,
        opt_state=optimizer.init(params),
        batch_stats=batch_stats,
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if with_ema else None,
    )
