"""The pictures of a step are what its model was fed with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from random_models import stateless

from convnext_jax.config import from_dict
from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.models.spec import ModelSpec
from convnext_jax.step_builder import build_step

CLASSES, SIDE, SEED = 3, 8, 4


def config(**augment):
    return from_dict(
        {
            "seed": SEED,
            "num_steps": 3,
            "model": {"name": "convnext_atto", "depths": (1, 1), "dims": (4, 4)},
            "data": {"global_batch": 16, "per_device_batch": 8, "image_size": SIDE},
            "augment": {"mix_group": 4, **augment},
        }
    )


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.5}])
def test_they_are_those_of_the_first_micro_batch(augment, monkeypatch):
    seen = []

    def function(spec):
        def apply(params, images, key=None):
            jax.debug.callback(lambda found: seen.append(np.array(found)), images)
            zeros = 0 * images.sum((1, 2, 3))[:, None]
            return params["head"]["bias"][None, :] + zeros

        return stateless(apply)

    monkeypatch.setattr(ModelSpec, "function_with_batch_stats", function)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    step = build_step(config(**augment), mesh, CLASSES, 100)
    assert step.accumulation_steps == 2
    params = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), step.task.model.spec.abstract_params()
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, 16).astype(np.int32),
    }
    state = jax.jit(step.initial_state)(params)
    for number in range(2):
        seen.clear()
        found = np.asarray(step.pictures(batch, number))
        state, metrics = step.function(state, batch)
        jax.block_until_ready(metrics)
        jax.effects_barrier()
        assert found.dtype == np.uint8 and len(seen) == 2
        pixels = [np.array(IMAGENET_STD) * images + IMAGENET_MEAN for images in seen]
        fed = [np.clip(np.round(255 * images), 0, 255).astype(np.uint8) for images in pixels]
        # A pixel half way between two values may be rounded either way.
        near = [np.abs(found.astype(int) - images) <= 1 for images in fed]
        assert [part.all() for part in near].count(True) == 1
        unchanged = np.array_equal(found, batch["image"][::2])
        assert unchanged == (not augment)
