"""Photographs, small models and checkpoints of them."""

import jax
import numpy as np
import sklearn.datasets
from flax import nnx
from PIL import Image
from random_models import random_params

from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.models.spec import ModelDescription, ModelSpec, params_of
from convnext_jax.models.variants import Preprocessing

PHOTOGRAPHS = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
# Both orientations, square, odd, tiny, and a strip.
SIZES = [(640, 427), (427, 640), (500, 375), (333, 501), (257, 256), (31, 47), (200, 9), (8, 8)]

SPEC = ModelSpec(
    "convnext_atto", 7, {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16), "kernel_size": 3}
)
FEEDING = Preprocessing(input_size=64, crop_fraction=0.9)
NAMES = tuple("one two three four five six seven".split())


def photographs() -> list[Image.Image]:
    """One image a size of `SIZES`."""
    return [PHOTOGRAPHS[i % 2].resize(size) for i, size in enumerate(SIZES)]


def crops(count: int) -> list[Image.Image]:
    """Images of another content and size each."""
    return [PHOTOGRAPHS[i % 2].crop((7 * i, 5 * i, 80 + 9 * i, 90 + 6 * i)) for i in range(count)]


def model_with(spec: ModelSpec, params):
    """The model that a spec describes, with given parameters."""
    graph, state = nnx.split(spec.abstract())
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def compiled(model):
    """A model's `__call__` as one program: operation by operation it takes seconds."""
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    return lambda images: call(state, images)


def small_params(seed: int = 0, spec: ModelSpec = SPEC):
    return random_params(spec.abstract_params(), seed)


def save(workdir, steps, spec=SPEC, feeding=FEEDING, names=NAMES, without=()):
    """Writes a run's checkpoints.

    `steps` maps each to (its arrays by item, its metrics); `without` are left out of descriptions.
    """
    described = ModelDescription(spec, feeding, names).to_json()
    described = {key: value for key, value in described.items() if key not in without}
    (workdir / "config.json").write_text("{}")
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric="eval_ema_top1", keep_last=9)
    for step, (arrays, metrics) in steps.items():
        checkpoints.save(step, arrays, described)
        if metrics is not None:
            checkpoints.add_evaluation(step, metrics)
    checkpoints.wait()
    checkpoints.close()


def arrays_equal(model, params) -> bool:
    """Whether a model has exactly these parameters."""
    ours = params_of(model)
    assert jax.tree.structure(ours) == jax.tree.structure(params)
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True)
    )
