"""ConvNeXt as the backbone of a model that looks at more than its last map."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from convnext_jax.models import layers
from convnext_jax.models.convnext import ConvNeXt, run_blocks


def inside(x: Array, sizes: Array) -> Array:
    """Which places of maps [N, H, W, C] are within sizes [N, 2]: bool [N, H, W, 1]."""
    shape = x.shape[:3]
    rows, columns = (jax.lax.broadcasted_iota(sizes.dtype, shape, axis) for axis in (1, 2))
    heights, widths = (size.reshape(-1, 1, 1) for size in (sizes[:, 0], sizes[:, 1]))
    return ((rows < heights) & (columns < widths))[..., None]


class Backbone(ConvNeXt):
    """A ConvNeXt without its classifier, and a norm of each stage's map as it goes out."""

    def __init__(self, **arguments) -> None:
        """Takes the arguments of `ConvNeXt`, but for `num_classes`."""
        super().__init__(num_classes=0, **arguments)
        rngs = arguments["rngs"]
        self.norm = self.norm_pre = self.pre_logits = self.head = None
        norms = [layers.LayerNorm(dim, 1e-6, self.dtype, rngs) for dim in self.dims]
        self.norm0, self.norm1, self.norm2, self.norm3 = norms

    def features(self, images: Array, key: Array | None = None) -> list[Array]:
        """The four maps, each normalised; the stages see them as they were."""
        return self._outgoing(super().features(images, key))

    def features_within(
        self, images: Array, sizes: Array, key: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """The same of images of several sizes, as if each were alone.

        Args:
          images: [N, H, W, 3], each image in the upper left of its place.
          sizes: whole numbers [N, 2], their heights and widths.
          key: as in `features`.

        Returns:
          The maps, and the height and width of each example's [N, 2]; beyond is nothing of use.
        """
        x, maps, of_maps = images.astype(self.dtype), [], []
        for downsample, blocks in zip(self.downsample_layers, self.stages, strict=True):
            for layer in downsample:
                x = layer(jnp.where(inside(x, sizes), x, jnp.zeros((), x.dtype)))
                stride = layer.strides if isinstance(layer, nnx.Conv) else 1
                assert isinstance(stride, int)
                # What does not fill a patch is cut off; stems that overlap fill it up.
                cut = isinstance(layer, layers.PatchConv)
                sizes = sizes // stride if cut else -(-sizes // stride)
            valid = inside(x, sizes)
            x = run_blocks(blocks, x, key, self.remat, valid)
            maps.append(x)
            of_maps.append(sizes)
        return self._outgoing(maps), of_maps

    def _outgoing(self, maps: list[Array]) -> list[Array]:
        norms = (self.norm0, self.norm1, self.norm2, self.norm3)
        return [norm(x) for norm, x in zip(norms, maps, strict=True)]
