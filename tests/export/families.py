"""One small model of each kind, with the arrays that tell its parameters apart."""

import numpy as np
from random_models import random_params

from convnext_jax.models.spec import ModelSpec
from convnext_jax.tree import map_with_names

# Filters of 7x7 would be most of what there is to compile; one model has them.
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20), "kernel_size": 3}
SPECS = {
    "V1": ModelSpec("convnext_atto", 5, SMALL | {"kernel_size": 7}),
    "overlapping stem": ModelSpec("convnext_atto_ols", 5, SMALL),
    "overlapping stem, activation": ModelSpec("convnext_zepto_rms_ols", 5, SMALL),
    "simple norm": ModelSpec("convnext_zepto_rms", 5, SMALL),
    "four channels": ModelSpec("convnext_atto", 5, SMALL | {"in_channels": 4}),
    "V2": ModelSpec("convnextv2_atto", 5, SMALL),
    "backbone": ModelSpec("convnextv2_atto", 0, SMALL),
    "norm first": ModelSpec("convnext_atto", 5, SMALL | {"head_norm_first": True}),
    "hidden layer": ModelSpec("convnext_atto", 5, SMALL | {"head_hidden_size": 24}),
    "isotropic": ModelSpec(
        "convnext_isotropic_small",
        5,
        {"depths": (1,), "dims": (12,), "layer_scale_init": 0.5, "kernel_size": 3},
    ),
    "segmentation": ModelSpec(
        "upernet_convnext_atto", 5, SMALL | {"decoder_channels": 8, "auxiliary_channels": 8}
    ),
}


def variables(spec: ModelSpec):
    """Parameters and batch statistics at which every array matters."""
    rng = np.random.default_rng(1)

    def statistic(name, leaf):
        # Means about zero, or no ReLU behind them would ever see light.
        mean = name.endswith("mean")
        values = rng.normal(0, 0.3, leaf.shape) if mean else rng.uniform(0.5, 1.5, leaf.shape)
        return values.astype(np.float32)

    return random_params(spec.abstract_params()), map_with_names(
        statistic, spec.abstract_batch_stats()
    )


def side_of(spec: ModelSpec) -> int:
    return 32 if spec.name.startswith("convnext_isotropic") else 64
