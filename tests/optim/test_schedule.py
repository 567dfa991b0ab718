"""The learning rate of the paper's detection; the others' are with their tasks' recipes."""

import jax
import numpy as np
import pytest
import torch

from convnext_jax.config import from_dict
from convnext_jax.errors import InputError
from convnext_jax.optim.schedule import learning_rate, warmup_step


def test_steps_and_warmup_are_pytorchs_chained_schedulers():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.ChainedScheduler(
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=50),
            torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 270, 330]),
        ]
    )
    expected = []
    for _ in range(360):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    schedule = warmup_step(2e-4, total_steps=360, warmup_steps=50, milestones=[30, 270, 330])
    found = jax.jit(jax.vmap(schedule))(np.arange(360))
    # float32; the warm-up's share is a difference near 1, good to 1e-7 of 1. PyTorch multiplies up
    # from step to step, in double.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-4 * 2e-7)


def test_without_milestones_and_out_of_range():
    rate = learning_rate("step", 0.1, total_steps=10, warmup_steps=0, minimum=0.0)
    assert float(rate(9)) == pytest.approx(0.1)
    with pytest.raises(InputError, match="the warm-up"):
        warmup_step(0.1, total_steps=10, warmup_steps=11)
    for milestones in ((3, 3), (0, 2)):
        with pytest.raises(InputError, match=r"`optim.milestones` .* must be rising epochs"):
            from_dict({"optim": {"schedule": "step", "milestones": milestones}})
    with pytest.raises(InputError, match="must be empty, unless `optim.schedule` is step"):
        from_dict({"optim": {"milestones": (3,)}})
