"""Cross entropy of every pixel, of both heads."""

import jax
import jax.numpy as jnp

from convnext_jax.constants import IGNORED
from convnext_jax.segmentation.resize import resize
from convnext_jax.segmentation.upernet import Logits


def pixel_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy at the size of the labels, its mean over all pixels.

    Ignored pixels add nothing and count all the same, as in the reference: so the loss does not
    depend on how a batch is split. (mmsegmentation 0.11, `CrossEntropyLoss`.)

    Args:
      logits: float32 [N, h, w, classes], resized bilinearly to the labels' size.
      labels: whole numbers [N, H, W], of a class or `IGNORED`.

    Returns:
      float32 scalar.
    """
    whole = resize(logits.astype(jnp.float32), *labels.shape[1:])
    counts = labels != IGNORED
    # Any class will do where none is.
    classes = jnp.where(counts, labels, 0).astype(jnp.int32)
    right = jnp.take_along_axis(whole, classes[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(whole, axis=-1) - right
    return jnp.where(counts, losses, 0.0).mean()


def segmentation_loss(logits: Logits, labels: jax.Array, auxiliary_weight: float) -> jax.Array:
    """`pixel_loss` of the decoder, and `auxiliary_weight` times that of the auxiliary head."""
    assert logits.auxiliary is not None, "only training has a loss"
    auxiliary = pixel_loss(logits.auxiliary, labels)
    return pixel_loss(logits.decode, labels) + auxiliary_weight * auxiliary
