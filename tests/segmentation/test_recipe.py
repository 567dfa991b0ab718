"""The learning rates of the paper's segmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convnext_jax import tree
from convnext_jax.errors import InputError
from convnext_jax.models.spec import params_of
from convnext_jax.optim.param_groups import decay_mask, stage_scales
from convnext_jax.optim.schedule import warmup_poly
from convnext_jax.segmentation.upernet import UPerNet


def mmcv(step, base=1e-4, total=160_000, warmup=1500, ratio=1e-6):
    """The rate in mmcv 1.3: `PolyLrUpdaterHook` with `warmup='linear'`, in Python's floats."""
    rate = base * (1 - step / total) ** 1.0
    return rate * (1 - (1 - step / warmup) * (1 - ratio)) if step < warmup else rate


def test_the_schedule_over_the_whole_run():
    schedule = jax.jit(jax.vmap(warmup_poly(1e-4, total_steps=160_000, warmup_steps=1500)))
    steps = np.arange(160_000)
    expected = np.array([mmcv(step) for step in steps])
    # float32; at the start the warm-up's share is a difference near 1, good to 1e-7 of 1.
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-6, atol=1e-4 * 2e-7)
    assert float(schedule(steps)[1500]) == pytest.approx(mmcv(1500), rel=1e-6)


def test_power_and_minimum():
    schedule = warmup_poly(1.0, total_steps=10, power=2.0, minimum=0.1)
    assert float(schedule(jnp.int32(5))) == pytest.approx(0.9 * 0.25 + 0.1)
    with pytest.raises(InputError, match="the warm-up"):
        warmup_poly(1.0, total_steps=10, warmup_steps=11)


# The multipliers of the published configs, by the number of blocks of the third stage (`num_layers`
# is 6 for T and 12 for the others): downsampling, the four stages; the rest is 1.
SCALES = {
    9: (0.4783, 0.5314, 0.5905, 0.6561, 0.7290),
    27: (0.2542, 0.2824, 0.3138, 0.3487, 0.3874),
}


@pytest.mark.parametrize("blocks", SCALES)
def test_every_learning_rate_by_its_stage(blocks):
    model = nnx.eval_shape(
        lambda: UPerNet(num_classes=3, depths=(1, 1, 2, 1), dims=(4, 4, 4, 4), rngs=nnx.Rngs(0))
    )
    params = params_of(model)
    scales = tree.flatten_with_names(stage_scales(params, (3, 3, blocks, 3), 0.9))
    downsampling, *stages = SCALES[blocks]
    seen = set()
    for name, scale in scales.items():
        kind, part, number = (name.split("/") + [""])[:3]
        expected = 1.0
        if kind == "backbone" and part == "downsample_layers":
            expected = downsampling
        elif kind == "backbone" and part == "stages":
            expected = stages[int(number)]
        assert scale == pytest.approx(expected, abs=5e-5), name
        seen.add(expected)
    assert len(seen) == 6
    # Statistics are no parameters, and of these the vectors do not decay.
    mask = tree.flatten_with_names(decay_mask(params))
    assert all(mask[name] == name.endswith("kernel") for name in mask)
