"""Cross entropy of images that are erased and mixed, with smoothed labels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from convnext_jax.classification.erasing import RandomErasing
from convnext_jax.classification.mixup import Mixup
from convnext_jax.data.normalize import normalize
from convnext_jax.training.task import Batch, Loss

# (params, batch_stats, images, key=None) -> logits, batch_stats
Apply = Callable[..., tuple[jax.Array, Any]]


def training_inputs(
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float = 0.0,
    erasing: RandomErasing | None = None,
    mixup: Mixup | None = None,
) -> Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """Makes a function of a micro-batch to what the model is fed with in training, and its targets.

    Args:
      num_classes: labels lie in [0, num_classes).
      mean: channel means for pixels in [0, 1].
      std: channel standard deviations.
      label_smoothing: share of the target that is spread evenly over all classes.
      erasing: random erasing of the normalised images; None for none.
      mixup: mixing of images and targets after that; None for none.

    Returns:
      (batch, key) -> (images, targets), of a batch with `image`, uint8 [N, H, W, 3], and `label`,
      int [N]: float32 [N, H, W, 3], normalised, and float32 [N, num_classes].
    """

    def inputs(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, erasing_key, mixup_key = jax.random.split(key, 3)
        images = normalize(batch["image"], mean, std)
        targets = jax.nn.one_hot(batch["label"], num_classes)
        targets = optax.smooth_labels(targets, label_smoothing)
        if erasing is not None:
            images = erasing.erase(images, erasing_key)
        if mixup is not None:
            images, targets = mixup.mix(images, targets, mixup_key)
        return images, targets

    return inputs


def cross_entropy(apply: Apply, num_classes: int, **options: Any) -> Loss:
    """Makes the loss of a micro-batch.

    Args:
      apply: the model as a function of its parameters and batch statistics.
      num_classes: labels lie in [0, num_classes).
      **options: as `training_inputs` has them.

    Returns:
      The loss of a batch with `image`, uint8 [N, H, W, 3], and `label`, int [N].
    """
    inputs = training_inputs(num_classes, **options)

    def loss(
        params: Any, batch_stats: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        images, targets = inputs(batch, key)
        logits, batch_stats = apply(params, batch_stats, images, key=jax.random.split(key, 3)[0])
        return optax.softmax_cross_entropy(logits, targets).mean(), batch_stats, {}

    return loss


def as_pictures(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Normalised images [N, H, W, 3] as uint8, cut off at black and white."""
    pixels = (
        images * jnp.asarray(std).reshape(1, 1, 1, 3) + jnp.asarray(mean).reshape(1, 1, 1, 3)
    ) * 255
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
