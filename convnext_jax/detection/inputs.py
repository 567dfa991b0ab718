"""What a detector is given of a batch as it was read."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from convnext_jax.data.normalize import normalize
from convnext_jax.models.backbone import inside
from convnext_jax.models.variants import Preprocessing


def model_inputs(batch: Mapping[str, jax.Array], feeding: Preprocessing) -> dict[str, jax.Array]:
    """Arguments of the model for a batch of rows as `detection.transforms` makes them.

    Args:
      batch: `image`, uint8 [N, S, L, 3], `size`, int32 [N, 2], and `portrait`, int32 [N].
      feeding: mean and standard deviation.

    Returns:
      `images`, float32 [N, S, L, 3], normalised, with zeros beyond each image, as in the reference;
      `sizes`, and `portrait`.
    """
    # A row that only fills up says nothing about the others' orientation.
    portrait = jnp.broadcast_to(batch["portrait"].max(), batch["portrait"].shape)
    sizes = batch["size"]
    lying = jnp.where(portrait[:, None] > 0, sizes[:, ::-1], sizes)
    images = normalize(batch["image"], feeding.mean, feeding.std)
    images = jnp.where(inside(images, lying), images, 0.0)
    return {"images": images, "sizes": sizes, "portrait": portrait}
