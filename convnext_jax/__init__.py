"""ConvNeXt ("A ConvNet for the 2020s", arXiv 2201.03545) in JAX and Flax NNX.

Names are imported on first use, so that `import convnext_jax` costs nothing and needs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext_jax.classification.grad_cam import grad_cam
    from convnext_jax.classification.predictor import Predictor
    from convnext_jax.models.registry import create_model, list_models
    from convnext_jax.models.variants import Preprocessing
    from convnext_jax.weights.load import load, load_pretrained
    from convnext_jax.weights.save import save_pretrained

__version__ = "0.1.0"

_HOMES = {
    "Predictor": "convnext_jax.classification.predictor",
    "Preprocessing": "convnext_jax.models.variants",
    "create_model": "convnext_jax.models.registry",
    "grad_cam": "convnext_jax.classification.grad_cam",
    "list_models": "convnext_jax.models.registry",
    "load": "convnext_jax.weights.load",
    "load_pretrained": "convnext_jax.weights.load",
    "save_pretrained": "convnext_jax.weights.save",
}

__all__ = [
    "Predictor",
    "Preprocessing",
    "__version__",
    "create_model",
    "grad_cam",
    "list_models",
    "load",
    "load_pretrained",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
