"""Batch normalisation, whose running statistics are a model's only state beside its parameters."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.errors import InputError
from convnext_jax.models import initial


class BatchNorm(nnx.Module):
    """Batch normalisation over all but the last axis, as PyTorch computes it.

    In training statistics are of the whole batch, on all devices, or of groups of examples; the
    running variance takes the unbiased one. All is float32 whatever `dtype`, the result's dtype,
    is. (`torch.nn.BatchNorm2d`, and `SyncBatchNorm` where a batch is split.)

    Args:
      features: number of channels C.
      dtype: dtype of the result.
      momentum: share of the batch's statistics in the new running ones.
      eps: added to the variance.
      group: number of consecutive examples that share their statistics in training; the running
        ones then take the mean over the groups. A smaller batch is one group. None: so is any.
    """

    def __init__(
        self,
        features: int,
        dtype: DTypeLike,
        momentum: float = 0.1,
        eps: float = 1e-5,
        group: int | None = None,
    ) -> None:
        """Sets scale and variance to 1, bias and mean to 0."""
        self.scale = nnx.Param(initial.full((features,), 1.0))
        self.bias = nnx.Param(initial.full((features,), 0.0))
        self.mean = nnx.BatchStat(initial.full((features,), 0.0))
        self.var = nnx.BatchStat(initial.full((features,), 1.0))
        self.momentum = momentum
        self.eps = eps
        self.group = group
        self.dtype = dtype

    def __call__(self, x: Array, train: bool, valid: Array | None = None) -> Array:
        """Normalises `x` [N, ..., C]; in training by the batch's own statistics, which it notes.

        Args:
          x: the batch.
          train: takes the batch's statistics, and not the running ones.
          valid: bool [N], which examples statistics are of; the others are normalised by them.
            Where there is none the running ones stay as they are. None: all of them. There are no
            groups then.

        Raises:
          InputError: in training, N is more than a group and makes no whole groups.
        """
        x = x.astype(jnp.float32)
        if train:
            y, statistics, share = self._by_groups(x) if valid is None else self._of_valid(x, valid)
            for running, seen in zip((self.mean, self.var), statistics, strict=True):
                old = running[...]
                running[...] = old + share * (jax.lax.stop_gradient(seen) - old)
            return y.astype(self.dtype)
        row = (1,) * (x.ndim - 1) + (-1,)
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        y = (x - self.mean[...].reshape(row)) * factor.reshape(row) + self.bias[...].reshape(row)
        return y.astype(self.dtype)

    def _by_groups(self, x: Array) -> tuple[Array, tuple[Array, Array], float]:
        """The batch normalised, and what the running statistics take note of.

        That is the means over groups of mean and unbiased variance, [C], and their share.
        """
        size = x.shape[0] if self.group is None else min(self.group, x.shape[0])
        if x.shape[0] % size:
            raise InputError(
                f"a micro-batch of {x.shape[0]} examples must make whole groups of {size}, over"
                " which BatchNorm takes its statistics"
            )
        # Examples are first reduced one by one, and only their [N, C] is put into groups, which may
        # lie across devices.
        inside = tuple(range(1, x.ndim - 1))

        def over_groups(values: Array) -> Array:
            return values.mean(inside).reshape(-1, size, x.shape[-1]).mean(1)

        def to_examples(values: Array) -> Array:
            rows = jnp.repeat(values, size, axis=0)
            return rows.reshape(-1, *(1,) * len(inside), x.shape[-1])

        mean = over_groups(x)
        centred = x - to_examples(mean)
        # Of the differences: the mean of squares minus the square of the mean loses digits.
        var = over_groups(jnp.square(centred))
        factor = self.scale[...].reshape(1, -1) * jax.lax.rsqrt(var + self.eps)
        row = (1,) * (x.ndim - 1) + (-1,)
        y = centred * to_examples(factor) + self.bias[...].reshape(row)
        count = size * math.prod(x.shape[1:-1])
        unbiased = var * (count / max(count - 1, 1))
        return y, (mean.mean(0), unbiased.mean(0)), self.momentum

    def _of_valid(self, x: Array, valid: Array) -> tuple[Array, tuple[Array, Array], Array]:
        """As `_by_groups`, of the valid examples alone."""
        assert self.group is None, "examples of a group are all valid"
        examples = valid.sum()
        places = math.prod(x.shape[1:-1])
        row = (1,) * (x.ndim - 1) + (-1,)

        def over_valid(values: Array) -> Array:
            means = values.mean(tuple(range(1, x.ndim - 1)))
            return jnp.where(valid[:, None], means, 0.0).sum(0) / jnp.maximum(examples, 1)

        mean = over_valid(x)
        centred = x - mean.reshape(row)
        var = over_valid(jnp.square(centred))
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        y = centred * factor.reshape(row) + self.bias[...].reshape(row)
        count = examples * places
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        return y, (mean, unbiased), jnp.where(examples > 0, self.momentum, 0.0)
