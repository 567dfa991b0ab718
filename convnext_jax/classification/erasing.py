"""Random erasing of normalised images, on the accelerator, inside the training step."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from convnext_jax.errors import InputError

MODES = ("pixel", "rand", "const")

# How often a size is drawn for a box before the box is given up.
TRIES = 10


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills random boxes of some images with noise or with a colour.

    Follows timm's `RandomErasing` (timm/data/random_erasing.py, with `min_count` and `max_count`
    both `count`), which follows arXiv 1708.04896. Images are normalised before: the noise has the
    mean and deviation of normalised pixels, and zero is the mean colour.

    Attributes:
      probability: of erasing anything in an image.
      area: range of the area that an image loses, as a fraction of its area; with several boxes
        each takes its share. Uniform.
      aspect: range of height / width of a box. Uniform in the logarithm.
      mode: `pixel` fills with standard normal noise, `rand` with one standard normal colour for
        each box, `const` with zero.
      count: boxes in each image that is erased; a later box lies over an earlier one.

    Raises:
      InputError: a value is out of its range.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mode: str = "pixel"
    count: int = 1

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.probability <= 1:
            raise InputError(f"`probability` (={self.probability}) must lie in [0, 1]")
        if not 0 <= self.area[0] <= self.area[1] <= 1:
            raise InputError(f"`area` (={self.area}) must be an ascending pair within [0, 1]")
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise InputError(f"`aspect` (={self.aspect}) must be an ascending pair above 0")
        if self.mode not in MODES:
            raise InputError(f"`mode` (={self.mode!r}) must be one of {', '.join(MODES)}")
        if self.count < 1:
            raise InputError(f"`count` (={self.count}) must be at least 1")

    def erase(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Erases boxes that follow from the key alone.

        Args:
          images: float32 [N, H, W, C], normalised.
          key: two calls with one key erase the same.

        Returns:
          float32 [N, H, W, C].
        """
        examples, height, width, channels = images.shape
        box_key, fill_key = jax.random.split(key)
        boxes = self.draw_boxes(box_key, examples, height, width)
        fill = self.draw_fill(fill_key, examples, height, width, channels)
        return apply_boxes(images, boxes, fill)

    def draw_boxes(self, key: jax.Array, n: int, height: int, width: int) -> jax.Array:
        """Draws where `n` images lose their boxes.

        A box gets up to `TRIES` sizes until one is smaller than the image both ways; where none
        is, and in images that are left alone, it is empty.

        Args:
          key: of this draw.
          n: number of images.
          height: of the images, in pixels.
          width: likewise.

        Returns:
          int32 [n, count, 4]: top, left, height and width in pixels; zero where empty.
        """
        choice_key, area_key, aspect_key, top_key, left_key = jax.random.split(key, 5)
        tries = (n, self.count, TRIES)
        low, high = (share * height * width / self.count for share in self.area)
        areas = jax.random.uniform(area_key, tries, minval=low, maxval=high)
        low, high = (math.log(ratio) for ratio in self.aspect)
        log_aspects = jax.random.uniform(aspect_key, tries, minval=low, maxval=high)
        heights, widths = first_that_fits(areas, log_aspects, height, width)
        tops = jax.random.randint(top_key, heights.shape, 0, height - heights + 1)
        lefts = jax.random.randint(left_key, widths.shape, 0, width - widths + 1)
        boxes = jnp.stack([tops, lefts, heights, widths], axis=-1)
        erased = jax.random.bernoulli(choice_key, float(self.probability), (n, 1, 1))
        return jnp.where(erased & (heights * widths > 0)[..., None], boxes, 0)

    def draw_fill(
        self, key: jax.Array, n: int, height: int, width: int, channels: int
    ) -> jax.Array:
        """Draws what the boxes of `n` images are filled with.

        Args:
          key: of this draw.
          n: number of images.
          height: of the images, in pixels.
          width: likewise.
          channels: of the images.

        Returns:
          float32 [n, count, height, width, channels].
        """
        shape = (n, self.count, height, width, channels)
        if self.mode == "const":
            return jnp.zeros(shape)
        # A pixel shows the noise of one box at most, so the boxes of an image can share theirs.
        drawn = (n, 1, *shape[2:]) if self.mode == "pixel" else (n, self.count, 1, 1, channels)
        return jnp.broadcast_to(jax.random.normal(key, drawn), shape)


def first_that_fits(
    areas: jax.Array, log_aspects: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """Takes the first box of each row of tries that is smaller than the image both ways.

    Args:
      areas: float32 [..., tries], in pixels.
      log_aspects: float32 [..., tries], the logarithm of height / width.
      height: of the image, in pixels.
      width: likewise.

    Returns:
      Heights and widths, int32 [...], in pixels; 0 where no try fits.
    """
    ratios = jnp.exp(log_aspects)
    heights = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    # A sum over a mask instead of an index, which could fetch from another device.
    first = fits & (jnp.cumsum(fits, axis=-1) == 1)
    return jnp.sum(heights * first, axis=-1), jnp.sum(widths * first, axis=-1)


def apply_boxes(images: jax.Array, boxes: jax.Array, fill: jax.Array) -> jax.Array:
    """Replaces the pixels inside the boxes.

    Args:
      images: float32 [N, H, W, C].
      boxes: int32 [N, count, 4], from `RandomErasing.draw_boxes`.
      fill: float32 [N, count, H, W, C]; a box takes the part that lies under it.

    Returns:
      float32 [N, H, W, C].
    """
    inside = box_mask(boxes, *images.shape[1:3])[..., None]
    for number in range(boxes.shape[1]):
        images = jnp.where(inside[:, number], fill[:, number], images)
    return images


def box_mask(boxes: jax.Array, height: int, width: int) -> jax.Array:
    """Marks the pixels inside each box.

    Args:
      boxes: int32 [..., 4]: top, left, height and width in pixels.
      height: of the image, in pixels.
      width: likewise.

    Returns:
      bool [..., height, width].
    """
    outer = (1,) * (boxes.ndim - 1)
    rows = jnp.arange(height).reshape(*outer, height, 1)
    columns = jnp.arange(width).reshape(*outer, 1, width)
    top, left, box_height, box_width = (boxes[..., side, None, None] for side in range(4))
    in_rows = (rows >= top) & (rows < top + box_height)
    return in_rows & (columns >= left) & (columns < left + box_width)
