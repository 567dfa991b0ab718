"""The mesh and where arrays lie on it; eight virtual devices (see conftest)."""

from types import SimpleNamespace

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


@pytest.mark.parametrize("data, fsdp", [(-1, 2), (4, 2), (-1, 4), (8, 1)])
def test_only_data_goes_from_slice_to_slice(data, fsdp):
    mesh = sharding.create_mesh(data, fsdp, slices=2)
    assert mesh.axis_names == sharding.AXES and mesh.shape["fsdp"] == fsdp
    for number, half in enumerate(np.split(mesh.devices, 2)):
        assert {device.id // 4 for device in half.flat} == {number}
    # The rows of a batch follow the devices, as on one slice.
    rows = np.arange(16)
    batch = sharding.global_batch({"label": rows}, mesh)
    np.testing.assert_array_equal(batch["label"], rows)
    assert sharding.rows_of_this_process(mesh, 16) == list(rows)


@pytest.mark.parametrize(
    "slices, fsdp, says",
    [
        (2, 8, r"`mesh.fsdp` \(=8\).*a slice \(=4\)"),
        (3, 1, r"`mesh.slices` \(=3\).*devices \(=8\)"),
        (0, 1, r"`mesh.slices` \(=0\)"),
    ],
)
def test_slices_that_do_not_fit_are_errors(slices, fsdp, says):
    with pytest.raises(InputError, match=says):
        sharding.create_mesh(fsdp=fsdp, slices=slices)


def described(*places, platform="tpu"):
    """Devices by (slice, process), their numbers in the order given."""
    return [
        SimpleNamespace(id=n, slice_index=slice_, process_index=process, platform=platform)
        for n, (slice_, process) in enumerate(places)
    ]


def test_tpus_say_which_slice_they_are_in():
    devices = described((1, 3), (0, 0), (1, 2), (0, 1))
    for slices in (-1, 2):
        groups = sharding.by_slice(devices, slices)
        assert [[d.id for d in group] for group in groups] == [[1, 3], [0, 2]]
    assert sharding.by_slice(devices, 1) == [devices]
    with pytest.raises(InputError, match=r"`mesh.slices` \(=4\) must be the number of slices \(=2"):
        sharding.by_slice(devices, 4)
    with pytest.raises(InputError, match="as many devices"):
        sharding.by_slice(described((0, 0), (0, 0), (1, 1)))


def test_other_devices_are_in_slices_by_their_process():
    # A GPU says in its slice_index which host it is on: fsdp may cross hosts.
    devices = described((1, 1), (0, 0), (1, 1), (0, 0), platform="gpu")
    assert sharding.by_slice(devices) == [devices]
    assert [[d.id for d in g] for g in sharding.by_slice(devices, 2)] == [[1, 3], [0, 2]]
    with pytest.raises(InputError, match=r"of processes \(=2\)"):
        sharding.by_slice(devices, 4)


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


def test_overview_says_how_many_arrays_lie_how():
    mesh = sharding.create_mesh(-1, 4)
    shapes = {
        name: jax.ShapeDtypeStruct(shape, "float32")
        for name, shape in {"a": (64, 256), "b": (512, 64), "c": (7,), "d": (256, 128)}.items()
    }
    text = sharding.overview(shapes, sharding.parameter_shardings(shapes, mesh))
    assert text.splitlines() == [
        "axis 0 over fsdp: 2 arrays, 65536 values, such as b",
        "axis 1 over fsdp: 1 arrays, 16384 values, such as a",
        "whole on each device: 1 arrays, 7 values, such as c",
    ]


def test_one_process_holds_all_rows_in_order():
    # Several processes: tests/e2e, where the batches of one and of four are compared.
    for fsdp in (1, 4):
        rows = sharding.rows_of_this_process(sharding.create_mesh(-1, fsdp), 24)
        assert rows == list(range(24))


class TwoHosts:
    """A sharding of two processes whose devices alternate along the mesh; this is the second."""

    def addressable_devices_indices_map(self, shape):
        assert shape == (8,)
        return {"d1": (slice(2, 4, None),), "d3": (slice(6, 8, None),)}


def test_rows_follow_the_mesh_rather_than_the_number_of_the_process(monkeypatch):
    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: TwoHosts())
    assert sharding.rows_of_this_process(None, 8) == [2, 3, 6, 7]
