"""How images lie on the canvas: one shape for all, with portrait images on their side.

Images of a batch are all landscape or all portrait. Those that are portrait come transposed, rows
and columns swapped, so that one landscape canvas holds either; the spatial filters that see them
are transposed with them, which makes every result the transpose of what it would be upright. Boxes
and what RoIAlign gives are always upright.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from convnext_jax.ops.roi_align import box_levels, mask_targets, roi_align

# Images count as filled up with zeros to a multiple of this: the stride of the last stage.
MULTIPLE = 32
# Of the maps that regions look at, in pixels.
ROI_STRIDES = (4, 8, 16, 32)

Module = TypeVar("Module", bound=nnx.Module)


def own_sizes(sizes: Array, portrait: Array) -> Array:
    """What of the canvas is an image's own.

    Args:
      sizes: whole numbers [N, 2], heights and widths of the images, upright.
      portrait: bool scalar, the images lie on their side.

    Returns:
      int32 [N, 2], rows and columns of the canvas, each rounded up to a multiple of 32.
    """
    padded = -(-sizes.astype(jnp.int32) // MULTIPLE) * MULTIPLE
    return jnp.where(portrait, padded[:, ::-1], padded)


def on_canvas(boxes: Array, portrait: Array) -> Array:
    """Upright boxes [..., 4] as they lie on the canvas; and back."""
    swapped = jnp.stack([boxes[..., i] for i in (1, 0, 3, 2)], axis=-1)
    return jnp.where(portrait, swapped, boxes)


def upright(maps: Array, portrait: Array) -> Array:
    """Square maps [N, R, H, H, ...] cut out of the canvas, upright."""
    return jnp.where(portrait, maps.swapaxes(2, 3), maps)


def laid(module: Module, portrait: Array) -> Module:
    """A module for what lies on the canvas: its spatial filters transposed if that is `portrait`.

    Nothing that the result takes note of reaches `module`, which must have no such state.
    """
    graph, params, others = nnx.split(module, nnx.Param, ...)

    def turned(parameter: Array) -> Array:
        if parameter.ndim != 4 or parameter.shape[:2] == (1, 1):
            return parameter
        return jnp.where(portrait, parameter.swapaxes(0, 1), parameter)

    return nnx.merge(graph, jax.tree.map(turned, params), others)


class View(NamedTuple):
    """The images of a batch as heads see them.

    Attributes:
      maps: of the pyramid, [N, H_l, W_l, C], as the images lie on the canvas; of `ROI_STRIDES`.
      of_maps: whole numbers [N, 2] for each, rows and columns that are an example's own.
      sizes: whole numbers [N, 2], heights and widths of the images in pixels, upright.
      portrait: bool scalar, they lie on their side.
    """

    maps: Sequence[Array]
    of_maps: Sequence[Array]
    sizes: Array
    portrait: Array

    def features(self, boxes: Array, side: int) -> Array:
        """What there is at boxes [N, R, 4], upright: [N, R, side, side, C]; no gradient to them."""
        # Their size chooses the level, which is the same lying.
        levels = box_levels(boxes)
        lying = on_canvas(lax.stop_gradient(boxes), self.portrait)
        found = roi_align(self.maps, self.of_maps, lying, levels, ROI_STRIDES, side)
        return upright(found, self.portrait)

    def mask_targets(self, masks: Array, boxes: Array, objects: Array, side: int) -> Array:
        """Objects' bitmaps (see `roi_align.mask_targets`) at boxes [N, R, 4], both upright.

        Returns:
          bool [N, R, side, side].
        """
        lying = on_canvas(lax.stop_gradient(boxes), self.portrait)
        return upright(mask_targets(masks, lying, objects, side), self.portrait)
