"""The number of devices, and how parameters lie on them, do not change a run."""

import numpy as np
import pytest
from e2e import commands

OVERRIDES = (*commands.TINY, "--config.num_steps=25", "--config.log_every_steps=1")


@pytest.fixture(scope="module")
def one_device(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    commands.train(workdir, commands.environment(*folders), *OVERRIDES)
    return workdir


@pytest.mark.slow  # test_processes.py has two processes of two devices each, against one
@pytest.mark.parametrize(("fsdp", "slices"), [(1, 1), (4, 2)])
def test_eight_devices_give_the_curve_of_one(fsdp, slices, one_device, folders, tmp_path):
    eight = commands.environment(*folders, devices=8)
    mesh = (f"--config.mesh.fsdp={fsdp}", f"--config.mesh.slices={slices}")
    commands.train(tmp_path, eight, *OVERRIDES, *mesh)
    expected, found = commands.losses(one_device), commands.losses(tmp_path)
    assert expected.keys() == found.keys() == set(range(1, 26))
    # Sums over the batch are taken in another order. That is 1e-7 a step, and grows along the run:
    # AdamW divides by the root of the second moment, so where a gradient is next to nothing, its
    # rounding decides the direction of the update. Twenty-five steps stay within 1e-4; a batch,
    # mask or key that depended on the devices would show in the first digits.
    np.testing.assert_allclose(list(found.values())[:5], list(expected.values())[:5], rtol=2e-6)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    for name in ("top1", "top5", "num_examples"):
        key = f"eval_params_{name}"
        assert commands.records(tmp_path)[-1][key] == commands.records(one_device)[-1][key]


@pytest.mark.slow  # training/test_step.py and test_task.py have it without a whole run
def test_micro_batches_give_the_curve_of_one_batch(one_device, folders, tmp_path):
    env = commands.environment(*folders)
    # Drop path draws per micro-batch, so it is off in both.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    commands.train(whole, env, *OVERRIDES, "--config.model.drop_path=0")
    commands.train(
        parts, env, *OVERRIDES, "--config.model.drop_path=0", "--config.data.per_device_batch=16"
    )
    # As above: only the order of sums differs.
    np.testing.assert_allclose(
        list(commands.losses(parts).values()), list(commands.losses(whole).values()), rtol=1e-4
    )
