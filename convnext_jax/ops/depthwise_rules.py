"""How a depthwise convolution by kernels is split over devices, and batched.

XLA neither partitions nor batches a custom call by itself: it would gather a sharded batch on every
device. These rules tell it that images and channels are independent of one another.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def forward_with_rules(one_device: Callable[[Array, Array], Array]) -> Callable:
    """The convolution on any number of devices, and of a batch of its arguments.

    Args:
      one_device: images [N, H, W, C] and filters [k, k, 1, C] to the convolution, on one device.
    """
    sharded = custom_partitioning(lambda x, kernel: one_device(x, kernel))

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        del result
        images, kernels = _shardings(arguments[0].sharding)
        return mesh, one_device, images, (images, kernels)

    sharded.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, arguments, _: _shardings(arguments[0].sharding)[
            0
        ],
        sharding_rule="n h w c, i j o c -> n h w c",
        need_replication_factors=("h", "w", "i", "j", "o"),
    )
    batched = custom_vmap(sharded)

    @batched.def_vmap
    def _(size: int, is_batched: Any, x: Array, kernel: Array) -> tuple[Array, bool]:
        if not is_batched[1]:
            y = batched(x.reshape(-1, *x.shape[2:]), kernel)
            return y.reshape(x.shape), True
        y = batched(_into_channels(x, size, is_batched[0]), _into_channels(kernel, size, True))
        return _from_channels(y, size), True

    return batched


def filter_gradient_with_rules(one_device: Callable[[Array, Array], Array]) -> Callable:
    """The filter's gradient on any number of devices, and of a batch of its arguments.

    Args:
      one_device: images and the result's gradient, [N, H, W, C], to that of the filter,
        [k, k, 1, C] float32, on one device.
    """
    sharded = custom_partitioning(lambda x, dy: one_device(x, dy))

    def partition(mesh: Any, arguments: Any, result: Any) -> Any:
        del result
        images, kernels = _shardings(arguments[0].sharding)
        axes = images.spec[0]

        def sum_over_devices(x: Array, dy: Array) -> Array:
            sums = one_device(x, dy)
            return sums if axes is None else lax.psum(sums, axes)

        return mesh, sum_over_devices, kernels, (images, images)

    sharded.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, arguments, _: _shardings(arguments[0].sharding)[
            1
        ],
        sharding_rule="n h w c, n h w c -> i j o c",
        reduction_factors=("n",),
        need_replication_factors=("h", "w", "i", "j", "o"),
    )
    batched = custom_vmap(sharded)

    @batched.def_vmap
    def _(size: int, is_batched: Any, x: Array, dy: Array) -> tuple[Array, bool]:
        x, dy = (_into_channels(a, size, b) for a, b in zip((x, dy), is_batched, strict=True))
        return _from_channels(batched(x, dy), size), True

    return batched


def _shardings(images: NamedSharding) -> tuple[NamedSharding, NamedSharding]:
    """How images and filters are to be sharded, for images that come sharded as `images`."""
    spec = (*images.spec, None, None, None, None)
    return (
        NamedSharding(images.mesh, PartitionSpec(spec[0], None, None, spec[3])),
        NamedSharding(images.mesh, PartitionSpec(None, None, None, spec[3])),
    )


def _into_channels(a: Array, size: int, is_batched: bool) -> Array:
    """[V, ..., C] as [..., V * C]; what is not batched is repeated `size` (= V) times."""
    a = jnp.moveaxis(a, 0, -2) if is_batched else jnp.repeat(a[..., None, :], size, axis=-2)
    return a.reshape(*a.shape[:-2], -1)


def _from_channels(a: Array, size: int) -> Array:
    """[..., V * C] as [V, ..., C] with V = `size`."""
    return jnp.moveaxis(a.reshape(*a.shape[:-1], size, -1), -2, 0)
