"""Models as StableHLO: one file for CPUs, NVIDIA GPUs and TPUs, which needs nothing but JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, export

from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelSpec

PLATFORMS = ("cpu", "cuda", "tpu")
# A flatbuffer, which `jax.export` writes, holds less than 2 GiB.
_LARGEST = 2**31 - 2**24


def stablehlo(
    spec: ModelSpec, params: Any, batch_stats: Any, size: int
) -> tuple[bytes, tuple[int | str, ...]]:
    """Lowers a model for inference, with its weights inside and any number of images at once.

    Args:
      spec: the model; its `dtype` is that of computation.
      params: its parameters.
      batch_stats: its statistics.
      size: side of images, pixels.

    Returns:
      What `jax.export.deserialize` takes, a function of float32 images [n, size, size, channels] to
      float32 logits, [n, classes] or of models that segment [n, size / 4, size / 4, classes]; and
      the logits' shape, with "n".

    Raises:
      InputError: the model takes no images of that size, or is too large.
    """
    size_of_weights = sum(array.nbytes for array in jax.tree.leaves(params))
    if size_of_weights > _LARGEST:
        raise InputError(
            f"{spec.name} has {size_of_weights / 2**30:.1f} GiB of weights, and a StableHLO file"
            " must have less than 2: `--formats onnx` has no such limit"
        )
    apply = spec.function_with_batch_stats()
    segments = get_variant(spec.name).task == "segmentation"

    def logits(images: Array) -> Array:
        outputs, _ = apply(params, batch_stats, images)
        return outputs.decode if segments else outputs

    (count,) = export.symbolic_shape("n")
    channels = spec.overrides.get("in_channels", 3)
    images = jax.ShapeDtypeStruct((count, size, size, channels), jnp.float32)
    exported = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    (logits_of,) = exported.out_avals
    shape = tuple(side if isinstance(side, int) else str(side) for side in logits_of.shape)
    return bytes(exported.serialize()), shape
