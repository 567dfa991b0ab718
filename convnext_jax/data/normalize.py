"""From stored pixels to what models take, on the accelerator."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Scales uint8 pixels to [0, 1], then subtracts the mean and divides by the standard deviation.

    Args:
      images: uint8 [N, H, W, 3].
      mean: of each channel, for pixels in [0, 1].
      std: likewise.

    Returns:
      float32 [N, H, W, 3].
    """
    mean_row, std_row = (np.array(x, np.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images.astype(jnp.float32) / 255 - mean_row) / std_row
