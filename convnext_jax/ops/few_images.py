"""Over how many devices the images lie of the step that is traced.

An operation sees all images of a step, not how many lie on a device. That is told here, by JAX's
own context of a mesh, which its caches of traced functions know too.

XLA's convolutions for TPUs lay images side by side in the lanes or sublanes of a register, which
one or two of them leave empty: other forms of an operation are faster then.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec


@contextlib.contextmanager
def batch_over(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Says over which devices the images lie of what is traced within: over all axes of a mesh."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def devices_with_few(x: Array, most: int = 2) -> int | None:
    """Over how many devices images [N, ...] lie if each has `most` or fewer; None: it has more."""
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    images, rest = divmod(x.shape[0], devices)
    return devices if rest == 0 and 0 < images <= most else None


def has_many(x: Array, least: int) -> bool:
    """Whether each device has at least `least` of images [N, ...].

    False where several devices are and nothing says whether the images lie on them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and jax.device_count() > 1 or not isinstance(x.shape[0], int):
        return False
    return x.shape[0] >= least * (1 if mesh.empty else mesh.size)


def summed_over_devices(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
    """Has each device sum over its own images as `function` says, and then adds over devices.

    XLA by itself adds what comes out of a convolution before that is converted, so in bfloat16
    where the convolution has that; and gathers where one operation makes two sums.

    Args:
      function: of two arrays with the images along their first axes, which are split over all
        devices; gives sums over the images.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return function
    images = PartitionSpec(mesh.axis_names)

    def summed(a: Array, b: Array) -> Any:
        return lax.psum(function(a, b), mesh.axis_names)

    over = jax.shard_map(summed, in_specs=(images, images), out_specs=PartitionSpec())

    def called(a: Array, b: Array) -> Any:
        return function(a, b) if a.shape[0] % mesh.size else over(a, b)

    return called
