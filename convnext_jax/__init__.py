"""ConvNeXt ("A ConvNet for the 2020s", arXiv 2201.03545) in JAX and Flax NNX.

Names are imported on first use, so that `import convnext_jax` costs nothing and needs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext_jax.models.registry import create_model, list_models
    from convnext_jax.weights.load import load_pretrained

__version__ = "0.1.0"

_HOMES = {
    "create_model": "convnext_jax.models.registry",
    "list_models": "convnext_jax.models.registry",
    "load_pretrained": "convnext_jax.weights.load",
}

__all__ = ["__version__", "create_model", "list_models", "load_pretrained"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
