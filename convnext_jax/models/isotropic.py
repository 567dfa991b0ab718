"""Isotropic ConvNeXt (arXiv 2201.03545, section 3.3): one resolution throughout, as in a ViT."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.models import checks, layers
from convnext_jax.models.convnext import Block, run_blocks


class ConvNeXtIsotropic(layers.Keyed):
    """ConvNeXt blocks behind one 16x16 patch embedding, without downsampling in between.

    Unlike in `ConvNeXt`, no LayerNorm follows the stem. Arguments are those of `ConvNeXt`; `depths`
    and `dims` have one entry each, the number of blocks and of channels, so that code which reads
    them works for both architectures.

    Raises:
      InputError: if an argument is outside the range given in `ConvNeXt`.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        kernel_size: int = 7,
        layer_scale_init: float | None = None,
        drop_path: float = 0.0,
        head_init_scale: float = 1.0,
        norm_eps: float = 1e-6,
        dtype: DTypeLike = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        checks.check_hyperparameters(
            depths,
            dims,
            num_classes,
            in_channels,
            kernel_size,
            layer_scale_init,
            drop_path,
            norm_eps,
            stages=1,
        )
        self.depths = tuple(depths)
        self.dims = tuple(dims)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dtype = checks.compute_dtype(dtype)
        self.remat = remat

        (depth,), (dim,) = depths, dims
        rates = layers.drop_path_rates(drop_path, depth)
        self.stem = layers.PatchConv(in_channels, dim, 16, self.dtype, rngs)
        self.blocks = nnx.List(
            [
                Block(
                    dim,
                    index=index,
                    kernel_size=kernel_size,
                    layer_scale_init=layer_scale_init,
                    drop_path=rates[index],
                    norm_eps=norm_eps,
                    dtype=self.dtype,
                    rngs=rngs,
                )
                for index in range(depth)
            ]
        )
        self.norm = layers.LayerNorm(dim, norm_eps, jnp.float32, rngs)
        self.head = layers.head(dim, num_classes, head_init_scale, rngs)

    def features(self, images: Array, key: Array | None = None) -> list[Array]:
        """Computes the feature map after the last block, the only one there is.

        Args:
          images: [N, H, W, in_channels] floating point, normalised; H and W at least 16. Rows and
            columns that do not fill a 16x16 patch are cut off on the right and below.
          key: turns stochastic depth on (training) and decides what it drops; None is inference.

        Returns:
          A list of one array, [N, H // 16, W // 16, dims[0]] in the compute dtype: one per entry of
          `depths`, as in `ConvNeXt`.

        Raises:
          InputError: if `images` is not as above.
        """
        checks.check_inputs(images, key, self.in_channels, smallest=16)
        x = self.stem(images.astype(self.dtype))
        return [run_blocks(self.blocks, x, key, self.remat)]

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Classifies images: as `ConvNeXt.__call__`."""
        return self.classify(self.features(images, key)[-1])

    def classify(self, last: Array) -> Array:
        """What follows the last feature map: as `ConvNeXt.classify`."""
        return layers.pool_and_classify(last, self.norm, self.head)
