"""Mixup and CutMix of a batch with itself, on the accelerator, inside the training step."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from convnext_jax.classification.erasing import box_mask
from convnext_jax.errors import InputError


class Draws(NamedTuple):
    """What is random in the mixing of G groups of examples.

    Attributes:
      lam: float32 [G], the share in [0, 1] that an example keeps of itself; for CutMix the
        fraction of its area that lies outside the box.
      boxes: int32 [G, 4], what CutMix pastes: top, left, height and width in pixels; zero for
        groups without CutMix.
      use_cutmix: bool [G], CutMix instead of Mixup.
    """

    lam: jax.Array
    boxes: jax.Array
    use_cutmix: jax.Array


@dataclasses.dataclass(frozen=True)
class Mixup:
    """Mixes each example and its target with those of a partner.

    Consecutive examples form groups of `group`. A group draws one of Mixup (arXiv 1710.09412),
    CutMix (arXiv 1905.04899) and nothing, and one lambda; the partner of its example i is its
    example `group - 1 - i`. So the result does not depend on the number of devices, and where
    every device holds whole groups nothing moves between them. Within a group this is timm's
    `Mixup` (timm/data/mixup.py) in its batch mode.

    Attributes:
      mixup_alpha: Mixup's lambda follows Beta(alpha, alpha); 0 leaves Mixup out.
      cutmix_alpha: likewise for CutMix, before lambda is corrected to the area that was pasted.
      probability: of mixing a group at all.
      switch_probability: of CutMix in a group that is mixed, where neither is left out.
      group: examples that share a draw. A smaller batch is one group.

    Raises:
      InputError: a value is out of its range.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    group: int = 128

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"`{name}` (={getattr(self, name)}) must be at least 0")
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` (={getattr(self, name)}) must lie in [0, 1]")
        if self.group < 2 or self.group % 2:
            raise InputError(f"`augment.mix_group` (={self.group}) must be positive and even")

    @property
    def enabled(self) -> bool:
        """Whether anything can be mixed."""
        return self.probability > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0

    def mix(
        self, images: jax.Array, targets: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes as follows from the key alone.

        Args:
          images: float32 [N, H, W, C].
          targets: float32 [N, classes], one-hot labels after label smoothing.
          key: two calls with one key mix the same.

        Returns:
          The mixed images and targets, in the same shapes.

        Raises:
          InputError: N is odd, or above `group` and not a multiple of it.
        """
        examples, height, width, _ = images.shape
        groups = self.groups(examples)
        if not self.enabled:
            return images, targets
        return apply(images, targets, self.draw(key, groups, height, width))

    def groups(self, examples: int) -> int:
        """How many groups a batch of `examples` has.

        Raises:
          InputError: it is odd, or above `group` and not a multiple of it.
        """
        size = min(examples, self.group)
        if examples % size:
            raise InputError(
                f"the batch (={examples} examples) must be a multiple of"
                f" `augment.mix_group` (={self.group})"
                " or smaller"
            )
        if size % 2:
            raise InputError(f"the batch (={examples} examples) must be even to be mixed in pairs")
        return examples // size

    def draw(self, key: jax.Array, groups: int, height: int, width: int) -> Draws:
        """Draws how `groups` groups of images are mixed.

        Args:
          key: of this draw.
          groups: number of groups, G.
          height: of the images, in pixels.
          width: likewise.

        Returns:
          The draws of G groups; lambda is 1 in groups that are not mixed.
        """
        shape = (groups,)
        if not self.enabled:
            return Draws(jnp.ones(shape), jnp.zeros((groups, 4), jnp.int32), jnp.zeros(shape, bool))
        mixed_key, switch_key, lam_key, row_key, column_key = jax.random.split(key, 5)
        mixed = jax.random.bernoulli(mixed_key, float(self.probability), shape)
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            use_cutmix = jax.random.bernoulli(switch_key, float(self.switch_probability), shape)
        else:
            use_cutmix = jnp.full(shape, self.cutmix_alpha > 0)
        # One draw with the alpha of each group: the sampler is by far the largest part to compile.
        alpha = jnp.where(use_cutmix, float(self.cutmix_alpha), float(self.mixup_alpha))
        lam = jax.random.beta(lam_key, alpha, alpha)
        rows = jax.random.randint(row_key, shape, 0, height)
        columns = jax.random.randint(column_key, shape, 0, width)
        boxes = cutmix_boxes(lam, rows, columns, height, width)
        use_cutmix = mixed & use_cutmix
        boxes = jnp.where(use_cutmix[:, None], boxes, 0)
        pasted = (boxes[:, 2] * boxes[:, 3]).astype(jnp.float32) / (height * width)
        lam = jnp.where(use_cutmix, 1 - pasted, jnp.where(mixed, lam, 1.0))
        return Draws(lam, boxes, use_cutmix)


def cutmix_boxes(
    lam: jax.Array, rows: jax.Array, columns: jax.Array, height: int, width: int
) -> jax.Array:
    """Places boxes of an image's aspect around a centre and cuts them off at the border.

    Args:
      lam: float32 [G], the share of the area that stays outside a box before it is cut off.
      rows: int32 [G], of the centres, in [0, height).
      columns: int32 [G], likewise in [0, width).
      height: of the image, in pixels.
      width: likewise.

    Returns:
      int32 [G, 4]: top, left, height and width in pixels.
    """

    def interval(centre: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        length = (size * jnp.sqrt(1 - lam)).astype(jnp.int32)
        low = jnp.clip(centre - length // 2, 0, size)
        high = jnp.clip(centre + (length + 1) // 2, 0, size)
        return low, high - low

    (top, box_height), (left, box_width) = interval(rows, height), interval(columns, width)
    return jnp.stack([top, left, box_height, box_width], axis=-1)


def apply(images: jax.Array, targets: jax.Array, draws: Draws) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the one at the mirrored place of its group.

    Args:
      images: float32 [N, H, W, C], the groups one after another.
      targets: float32 [N, classes].
      draws: for G groups, N a multiple of G.

    Returns:
      The mixed images and targets, in the same shapes.
    """
    groups = draws.lam.shape[0]
    # The draws stay whole on every device, which picks those of its rows. Were they broadcast over
    # [G, group, ...] instead, the compiler would split the drawing itself over the devices, and
    # the loops within it would have to agree on when to end.
    group_of_row = jnp.arange(images.shape[0]) // (images.shape[0] // groups)
    lam, boxes, use_cutmix = (of_group[group_of_row] for of_group in draws)
    kept = 1 - box_mask(boxes, *images.shape[1:3]).astype(images.dtype)
    kept = jnp.where(use_cutmix.reshape(-1, 1, 1), kept, lam.reshape(-1, 1, 1))[..., None]
    lam = lam[:, None]
    return (
        images * kept + _partners(images, groups) * (1 - kept),
        targets * lam + _partners(targets, groups) * (1 - lam),
    )


def _partners(rows: jax.Array, groups: int) -> jax.Array:
    """[N, ...] -> [N, ...], each of the groups in reverse order."""
    grouped = rows.reshape(groups, rows.shape[0] // groups, *rows.shape[1:])
    return grouped[:, ::-1].reshape(rows.shape)
