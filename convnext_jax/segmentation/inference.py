"""From the views of images to the class of each pixel of their annotations, on the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from convnext_jax.data.normalize import normalize
from convnext_jax.models.backbone import inside
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation.views import TILE

Batch = Mapping[str, jax.Array]


class Group(NamedTuple):
    """Logits of views whose sum, weighted, is what is known of a pixel.

    Attributes:
      first: number of the first of the views.
      logits: float32 [N, views, h, w, classes].
    """

    first: int
    logits: jax.Array


def logits_of(
    model: ModelDescription, params: Any, batch_stats: Any, images: jax.Array, sizes: jax.Array
) -> jax.Array:
    """The logits of images that lie in the upper left of arrays, as if they were alone.

    Args:
      model: whose.
      params: its parameters.
      batch_stats: its statistics.
      images: uint8 [N, H, W, 3].
      sizes: whole numbers [N, 2], heights and widths.

    Returns:
      float32 [N, H // 4, W // 4, classes].
    """
    feeding = model.preprocessing
    apply = model.spec.function_with_batch_stats()
    x = normalize(images, feeding.mean, feeding.std)
    logits, _ = apply(params, batch_stats, jnp.where(inside(x, sizes), x, 0), sizes=sizes)
    return logits.decode


def window_groups(
    model: ModelDescription, params: Any, batch_stats: Any, batch: Batch
) -> list[Group]:
    """The logits of the windows of a batch of rows of `views.Windows`: one group.

    Windows are computed in turn, the first of each image, the second of each, up to the most that
    an image of this batch has.
    """

    def logits(i: jax.Array) -> jax.Array:
        images, sizes = (
            jax.lax.dynamic_index_in_dim(batch[name], i, axis=1, keepdims=False)
            for name in ("image", "size")
        )
        return logits_of(model, params, batch_stats, images, sizes)

    shape = jax.eval_shape(logits, jnp.int32(0))
    most = batch["image"].shape[1]
    empty = jnp.zeros((shape.shape[0], most, *shape.shape[1:]), shape.dtype)
    found = jax.lax.fori_loop(
        0,
        batch["views"].max(),
        lambda i, done: jax.lax.dynamic_update_index_in_dim(done, logits(i), i, axis=1),
        empty,
    )
    return [Group(0, found)]


def whole_groups(
    model: ModelDescription, params: Any, batch_stats: Any, batch: Batch
) -> list[Group]:
    """The logits of a batch of rows of `views.Whole`: a group for each view."""
    groups = []
    for i in range(batch["size"].shape[1]):
        images = batch[f"image{i}"]
        rows, ways = images.shape[:2]
        # Plain and mirrored in one go: a program has the model as often as there are sizes.
        sizes = jnp.repeat(batch["size"][:, i], ways, axis=0)
        found = logits_of(model, params, batch_stats, images.reshape(-1, *images.shape[2:]), sizes)
        found = found.reshape(rows, ways, *found.shape[1:])
        groups += [Group(i * ways + way, found[:, way : way + 1]) for way in range(ways)]
    return groups


def visit_tiles(
    groups: Sequence[Group],
    batch: Batch,
    visit: Callable[[Any, jax.Array, tuple[jax.Array, jax.Array]], Any],
    start: Any,
) -> Any:
    """Computes the classes of all pixels, a tile at a time.

    Where there are several groups, their probabilities are averaged; the likeliest class is taken.

    Args:
      groups: of logits.
      batch: rows of `views.Windows` or `views.Whole`.
      visit: (what it returned last, classes [N, *TILE], the tile's upper left corner) -> what it is
        given next.
      start: what it is given first.

    Returns:
      What `visit` returned last.
    """
    tiles = [-(-batch["shape"][:, axis].max() // TILE[axis]) for axis in (0, 1)]

    def matrix(name: str, axis: int, group: Group, corner: jax.Array) -> jax.Array:
        views = slice(group.first, group.first + group.logits.shape[1])
        part = batch[name][:, views, axis]
        return jax.lax.dynamic_slice_in_dim(part, corner, TILE[axis], axis=-1)

    def along(axis: int, group: Group, corner: jax.Array) -> jax.Array:
        """What an axis of the logits is multiplied by: float32 [N, views, TILE, length]."""
        places, weights = (matrix(name, axis, group, corner) for name in ("places", "weights"))
        looks = jax.nn.one_hot(places, group.logits.shape[2 + axis])
        return (looks * weights[..., None]).sum(2)

    def classes(corner: tuple[jax.Array, jax.Array]) -> jax.Array:
        total = jnp.zeros(())
        for group in groups:
            rows, columns = (along(axis, group, corner[axis]) for axis in (0, 1))
            tall = jnp.einsum("nvth,nvhwc->nvtwc", rows, group.logits, precision="highest")
            found = jnp.einsum("nvtwc,nvxw->ntxc", tall, columns, precision="highest")
            total = found if len(groups) == 1 else total + jax.nn.softmax(found, axis=-1)
        return jnp.argmax(total, axis=-1)

    def tile(number: jax.Array, carried: Any) -> Any:
        corner = (number // tiles[1] * TILE[0], number % tiles[1] * TILE[1])
        return visit(carried, classes(corner), corner)

    return jax.lax.fori_loop(0, tiles[0] * tiles[1], tile, start)


def class_maps(groups: Sequence[Group], batch: Batch) -> jax.Array:
    """The class of each pixel: uint8 [N, H, W] of the arrays that annotations have; 0 beyond."""

    def put(maps: jax.Array, classes: jax.Array, corner: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jax.lax.dynamic_update_slice(maps, classes.astype(jnp.uint8), (0, *corner))

    return visit_tiles(groups, batch, put, jnp.zeros_like(batch["label"]))
