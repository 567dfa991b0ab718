"""The mesh and where arrays lie on it; eight virtual devices (see conftest)."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from convnext_jax import sharding
from convnext_jax.errors import InputError


@pytest.mark.parametrize(
    "data, fsdp, sizes",
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 8, (1, 8)), (8, 1, (8, 1))],
)
def test_mesh_sizes(data, fsdp, sizes):
    assert tuple(sharding.create_mesh(data, fsdp).shape.values()) == sizes


@pytest.mark.parametrize("data, fsdp", [(-1, 3), (2, 2), (-1, -1), (0, 1), (-1, -2), (16, 1)])
def test_sizes_that_do_not_fit_are_errors(data, fsdp):
    with pytest.raises(InputError, match=r"`mesh\.(data|fsdp)`"):
        sharding.create_mesh(data, fsdp)


def test_large_arrays_are_split_along_their_largest_divisible_axis():
    shapes = {
        "wide": (64, 256),  # 2**14 elements
        "tall": (512, 64),
        "odd": (129, 128),
        "prime": (257, 263),
        "small": (64, 255),
        "scalar": (),
    }
    abstract = {k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()}
    found = sharding.parameter_shardings(abstract, sharding.create_mesh(fsdp=4))
    assert {k: s.spec for k, s in found.items()} == {
        "wide": PartitionSpec(None, "fsdp"),
        "tall": PartitionSpec("fsdp", None),
        "odd": PartitionSpec(None, "fsdp"),
        "prime": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
    whole = sharding.parameter_shardings(abstract, sharding.create_mesh())
    assert all(s.is_fully_replicated for s in whole.values())


def test_batches_are_split_over_both_axes():
    rows = np.arange(16)
    batch = sharding.global_batch({"label": rows}, sharding.create_mesh(fsdp=2))
    np.testing.assert_array_equal(batch["label"], rows)
    pieces = sorted(batch["label"].addressable_shards, key=lambda s: s.index[0].start)
    assert [s.data.tolist() for s in pieces] == rows.reshape(8, 2).tolist()
