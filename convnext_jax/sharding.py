"""The device mesh, and where the batch and the parameters lie on it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from convnext_jax import tree
from convnext_jax.errors import InputError

# The mesh axes. Both split the batch; `fsdp` also splits large parameters.
AXES = ("data", "fsdp")

# Parameters below this many elements stay whole: gathering them costs more than it saves.
FSDP_MIN_SIZE = 2**14


def create_mesh(
    data: int = -1, fsdp: int = 1, slices: int = -1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Arranges all devices of all processes in a mesh with the axes `AXES`.

    Slices of TPUs are joined by the data-centre network, which is slower than the links within
    one: only `data` goes from slice to slice, where a step sums its gradients.

    Args:
      data: number of devices along `data`, over all slices; -1 for all that `fsdp` leaves.
      fsdp: number of devices along `fsdp`; -1 for all that `data` leaves.
      slices: number of slices; -1 for those that TPUs say they are in, and for one elsewhere.
      devices: what to arrange, or descriptions of it; None: `jax.devices()`.

    Returns:
      A mesh with automatic axes: the compiler places what the program leaves open. The devices of a
      slice follow one another along `data`.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp}
    for name, size in (*sizes.items(), ("slices", slices)):
        if size != -1 and size < 1:
            raise InputError(f"`mesh.{name}` (={size}) must be positive, or -1 for the rest")
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 2:
        raise InputError("`mesh.data` and `mesh.fsdp` must not both be -1")
    if len(devices) % known or (not free and known != len(devices)):
        raise InputError(
            f"`mesh.data` (={data}) times `mesh.fsdp` (={fsdp}) must make the number of devices"
            f" (={len(devices)})"
        )
    if free:
        sizes[free[0]] = len(devices) // known
    groups = by_slice(devices, slices)
    if len(groups[0]) % sizes["fsdp"]:
        raise InputError(
            f"`mesh.fsdp` (={sizes['fsdp']}) must divide the number of devices of a slice"
            f" (={len(groups[0])}), or `mesh.slices` be 1, for slices not to matter"
        )
    shape, types = (len(groups[0]) // sizes["fsdp"], sizes["fsdp"]), (AxisType.Auto,) * len(AXES)
    # Within a slice the order follows its wiring.
    arranged = [jax.make_mesh(shape, AXES, types, devices=group).devices for group in groups]
    return Mesh(np.concatenate(arranged), AXES, axis_types=types)


def by_slice(devices: Sequence[Any], slices: int = -1) -> list[list[Any]]:
    """Groups devices by the slice that they are in, in the order of the slices.

    Args:
      devices: all there are.
      slices: number of slices; -1 for those that TPUs say they are in, and for one elsewhere. Of
        devices that say nothing, each slice gets as many processes as the others, in order.

    Raises:
      InputError: there is another number of slices, or they are of different sizes.
    """
    if slices == 1:
        return [list(devices)]
    groups: dict[int, list[Any]] = {}
    for device in devices:
        # Other platforms give each host a number of its own here.
        number = getattr(device, "slice_index", None) if device.platform == "tpu" else None
        groups.setdefault(number or 0, []).append(device)
    if slices not in (-1, len(groups)):
        if len(groups) > 1:
            raise InputError(
                f"`mesh.slices` (={slices}) must be the number of slices (={len(groups)}), or 1"
            )
        processes = len({device.process_index for device in devices})
        if len(devices) % slices or (processes > 1 and processes % slices):
            raise InputError(
                f"`mesh.slices` (={slices}) must divide the number of devices (={len(devices)}) and"
                f" of processes (={processes})"
            )
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        size = len(devices) // slices
        groups = {n: ordered[n * size : (n + 1) * size] for n in range(slices)}
    sizes = {len(group) for group in groups.values()}
    if len(sizes) > 1:
        raise InputError(f"all slices must have as many devices, and these have {sorted(sizes)}")
    return [groups[number] for number in sorted(groups)]


def rows_of_this_process(mesh: Mesh, global_batch: int) -> list[int]:
    """Which rows of a global batch lie on this process's devices, ascending.

    Not simply one stretch of it after another: on a TPU slice the mesh follows the wiring.

    Args:
      mesh: from `create_mesh`.
      global_batch: rows, divisible by the number of devices.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((global_batch,))
    parts = {index[0].indices(global_batch) for index in places.values() if index is not None}
    return [row for part in sorted(parts) for row in range(*part)]


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split like a batch, as `rows_of_this_process`."""
    parts = {shard.index[0].indices(len(array)): shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[place].data) for place in sorted(parts)])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """Decides how each array of a tree of parameters, or of what mirrors them, is split.

    The rule sees shapes alone, so a parameter, its moments and its moving average are split alike.
    An array of at least `FSDP_MIN_SIZE` elements is split over `fsdp` along its largest axis that
    divides; every other array is replicated. With `fsdp` of size one all are.

    Args:
      tree: arrays, or anything with a `shape`.
      mesh: from `create_mesh`.

    Returns:
      A tree of `NamedSharding` of the same structure.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _fsdp_spec(leaf.shape, mesh)), tree)


def gathering(
    function: Callable[..., Any],
    mesh: Mesh,
    dtypes: Mapping[str, DTypeLike],
    gradient_sum: DTypeLike = "float32",
) -> Callable[..., Any]:
    """Makes a function of parameters gather those that are split before it uses them.

    Left to itself the compiler may split the computation the way the parameters are, and pass
    activations between the devices instead. What is gathered is rounded first to the dtype that it
    is used in; gradients are summed over the devices and split again, in float32.

    Args:
      function: (parameters, ...) -> anything.
      mesh: from `create_mesh`.
      dtypes: by name of parameters, the dtype that the function rounds them to; of others, it uses
        them as they are.
      gradient_sum: of the gradients of parameters in `dtypes`: float32, or the dtype given there.
    """

    def gather(name: str, leaf: Any, sharding: NamedSharding) -> Any:
        dtype = jnp.dtype(dtypes.get(name, leaf.dtype))
        narrow = dtype == gradient_sum != leaf.dtype
        if sharding.is_fully_replicated and not narrow:
            return leaf
        return _gather(leaf, sharding, dtype, dtype if narrow else leaf.dtype)

    def gathered(params: Any, *arguments: Any, **keywords: Any) -> Any:
        shardings = parameter_shardings(params, mesh)
        whole = jax.tree_util.tree_map_with_path(
            lambda path, *leaves: gather(tree.path_name(path), *leaves), params, shardings
        )
        return function(whole, *arguments, **keywords)

    return gathered


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(leaf: Any, sharding: NamedSharding, rounded: DTypeLike, dtype: DTypeLike) -> Any:
    """The whole of an array that is split, rounded, and in a dtype that its gradient then has."""
    whole = replicated(sharding.mesh)  # pyright: ignore[reportArgumentType]
    return jax.lax.with_sharding_constraint(leaf.astype(rounded), whole).astype(dtype)


def _gather_forward(
    leaf: Any, sharding: NamedSharding, rounded: DTypeLike, dtype: DTypeLike
) -> tuple[Any, Any]:
    # An empty array remembers the parameter's dtype.
    return _gather(leaf, sharding, rounded, dtype), jnp.zeros((0,), leaf.dtype)


def _gather_backward(
    sharding: NamedSharding, rounded: DTypeLike, dtype: DTypeLike, residual: Any, dy: Any
) -> tuple[Any]:
    del rounded, dtype
    return (jax.lax.with_sharding_constraint(dy, sharding).astype(residual.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def overview(tree_of_shapes: Any, shardings: Any) -> str:
    """A table of how each array of a tree lies on the mesh, one line for each kind of split.

    Args:
      tree_of_shapes: arrays, or anything with a `shape` and a `size`.
      shardings: from `parameter_shardings`.
    """
    kinds: dict[str, list[tuple[str, int]]] = {}
    for (name, leaf), sharding in zip(
        tree.flatten_with_names(tree_of_shapes).items(), jax.tree.leaves(shardings), strict=True
    ):
        axes = [axis for axis, part in enumerate(sharding.spec) if part is not None]
        kind = f"axis {axes[0]} over fsdp" if axes else "whole on each device"
        kinds.setdefault(kind, []).append((name, leaf.size))
    return "\n".join(
        f"{kind}: {len(arrays)} arrays, {sum(size for _, size in arrays)} values,"
        f" such as {max(arrays, key=lambda array: array[1])[0]}"
        for kind, arrays in sorted(kinds.items())
    )


def _fsdp_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    parts = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < FSDP_MIN_SIZE or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*("fsdp" if axis == largest else None for axis in range(len(shape))))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that this process holds.

    Args:
      batch: arrays [rows of this process, ...].
      mesh: from `create_mesh`.

    Returns:
      Arrays [rows of all processes, ...], split by `batch_sharding`. The copy to the devices is
      started, not awaited.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
