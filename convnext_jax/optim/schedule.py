"""The learning rate: linear warm-up, then half a cosine, a polynomial, or steps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from convnext_jax.errors import InputError


def learning_rate(
    kind: str,
    peak: float,
    *,
    total_steps: int,
    warmup_steps: int,
    minimum: float,
    milestones: Sequence[int] = (),
) -> optax.Schedule:
    """The schedule of a name: `cosine`, `poly` or `step`; see `warmup_` and the name.

    `minimum` is for the first two, `milestones` for the last.
    """
    if kind == "step":
        return warmup_step(
            peak, total_steps=total_steps, warmup_steps=warmup_steps, milestones=milestones
        )
    schedule = {"cosine": warmup_cosine, "poly": warmup_poly}[kind]
    return schedule(peak, total_steps=total_steps, warmup_steps=warmup_steps, minimum=minimum)


def warmup_cosine(
    peak: float, *, total_steps: int, warmup_steps: int = 0, minimum: float = 1e-6
) -> optax.Schedule:
    """The schedule of the paper's runs (reference: `cosine_scheduler` in the official code).

    Weight decay that changes follows it too, without warm-up.

    Warm-up is `linspace(0, peak, warmup_steps)`, both ends included, so the first step has rate 0
    and the peak comes twice. Of the T steps that remain, step i of 0..T-1 has
    `minimum + (peak - minimum) * (1 + cos(pi * i / T)) / 2`, which ends just above `minimum`.

    Args:
      peak: the highest learning rate; without warm-up the value at the start.
      total_steps: optimiser steps of the whole run.
      warmup_steps: of these, how many are warm-up.
      minimum: what the cosine goes to.

    Returns:
      A function of the step (int scalar, from 0) that gives a float32 scalar.

    Raises:
      InputError: warm-up longer than the run.
    """
    _check_warmup(warmup_steps, total_steps)
    cosine_steps = total_steps - warmup_steps

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        warmup = peak * (step.astype(jnp.float32) / max(warmup_steps - 1, 1))
        # (1 + cos(pi i / T)) / 2 = sin^2(pi (T - i) / 2T), which keeps its relative precision in
        # float32 at the end of the run, where 1 + cos cancels.
        remaining = (total_steps - step).astype(jnp.float32) / max(cosine_steps, 1)
        cosine = minimum + (peak - minimum) * jnp.sin(jnp.pi / 2 * remaining) ** 2
        return jnp.where(step < warmup_steps, warmup, cosine)

    return learning_rate


def warmup_poly(
    base: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    power: float = 1.0,
    minimum: float = 0.0,
    warmup_ratio: float = 1e-6,
) -> optax.Schedule:
    """The schedule of the paper's segmentation (mmsegmentation 0.11: `poly`, linear warm-up).

    Step i of T has `(base - minimum) * (1 - i / T) ** power + minimum`. Warm-up is multiplied onto
    that: of W steps, i has a share that rises linearly from `warmup_ratio`, and would be 1 at W.

    Args:
      base: what the polynomial begins with.
      total_steps: optimiser steps of the whole run, T.
      warmup_steps: of these, how many are warm-up, W.
      power: of the polynomial.
      minimum: what it goes to.
      warmup_ratio: share of the rate at the first step.

    Returns:
      A function of the step (int scalar, from 0) that gives a float32 scalar.

    Raises:
      InputError: warm-up longer than the run.
    """
    _check_warmup(warmup_steps, total_steps)

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        remaining = (total_steps - step).astype(jnp.float32) / total_steps
        rate = (base - minimum) * remaining**power + minimum
        return rate * _warmup_share(step, warmup_steps, warmup_ratio)

    return learning_rate


def warmup_step(
    base: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
    warmup_ratio: float = 1e-3,
) -> optax.Schedule:
    """The schedule of the paper's detection (mmdetection 2.11: `step`, linear warm-up).

    From each milestone on the rate is `factor` times what it was. Warm-up is multiplied onto that,
    as in `warmup_poly`.

    Args:
      base: the learning rate after warm-up.
      total_steps: optimiser steps of the whole run.
      warmup_steps: of these, how many are warm-up.
      milestones: the first steps with lower rates.
      factor: what the rate is multiplied by at each.
      warmup_ratio: share of the rate at the first step.

    Returns:
      A function of the step (int scalar, from 0) that gives a float32 scalar.

    Raises:
      InputError: warm-up longer than the run.
    """
    _check_warmup(warmup_steps, total_steps)
    # Not powers of a count: those of float32 differ between platforms.
    rates = jnp.array([base * factor**passed for passed in range(len(milestones) + 1)], jnp.float32)

    def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        passed = sum((step >= milestone).astype(jnp.int32) for milestone in milestones)
        return rates[passed] * _warmup_share(step, warmup_steps, warmup_ratio)

    return learning_rate


def _warmup_share(step: jax.Array, warmup_steps: int, ratio: float) -> jax.Array:
    """What the rate is multiplied by: rises linearly from `ratio`, and is 1 from the warm-up on."""
    missing = 1 - step.astype(jnp.float32) / max(warmup_steps, 1)
    return jnp.where(step < warmup_steps, 1 - missing * (1 - ratio), 1.0)


def _check_warmup(warmup_steps: int, total_steps: int) -> None:
    if not 0 <= warmup_steps <= total_steps:
        raise InputError(
            f"the warm-up (={warmup_steps} steps) must lie within the run (={total_steps} steps)"
        )
