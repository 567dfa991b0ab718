"""RoIAlign (Mask R-CNN, section 3): features, or bitmaps, of boxes on a grid of fixed size.

Bilinear samples are separable, so the means that bins are made of are products of matrices,
W_y F W_x^T: exact, and so is the gradient, by the transposed product. F is what a box covers of its
map. That is cut into tiles of fixed size, of which most boxes have one to four and an image-wide
one has many; a loop goes over as many tiles as there are. (The whole map in place of F would be
168 M multiplications a box.)
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.errors import InputError
from convnext_jax.ops import roi_bins

# Rows and columns of cells; how many tiles at a time, of each image. On CPUs 4 to 32 are the same.
_TILE, _TILES = 16, 32
_MASK_TILE, _MASK_TILES = 128, 16  # the same of bitmaps, whose columns are whole bytes
_BYTE = 8


class _Static(NamedTuple):
    """What is known before a program runs."""

    shapes: tuple[tuple[int, ...], ...]  # of the maps
    dtype: jnp.dtype
    strides: tuple[int, ...]
    out: int


class _Grid(NamedTuple):
    """A map, and the tiles and bins to cut it into."""

    height: int
    width: int
    tile_rows: int
    tile_columns: int
    out: int


class _Tiles(NamedTuple):
    """The tiles of all boxes [N, R], one box behind the other."""

    rows: roi_bins.Bins
    columns: roi_bins.Bins
    across: Array  # int32: tiles side by side
    count: Array  # int32: tiles of a box
    ends: Array  # int32: tiles up to and with a box's


class _Part(NamedTuple):
    """A few tiles of one image."""

    box: Array  # int32 [B]
    row: Array  # int32 [B], the upper left corner
    column: Array
    row_weights: Array  # float32 [B, out, rows]
    column_weights: Array  # float32 [B, out, columns]


@jax.named_scope("roi_align")
def roi_align(
    maps: Sequence[Array],
    sizes: Sequence[Array],
    boxes: Array,
    levels: Array,
    strides: Sequence[int],
    out: int,
) -> Array:
    """The features of boxes, each from its own level.

    As mmcv's and torchvision's with `aligned=True` and `sampling_ratio=0`: `ops/roi_bins.py` has
    the rules.

    Args:
      maps: [N, H_l, W_l, C] floating point, of each level.
      sizes: whole numbers [N, 2] of each level: rows and columns of each example's own map, where
        its border is; what is beyond counts for nothing if it is finite.
      boxes: float32 [N, R, 4]: x1, y1, x2, y2 in pixels, x along columns. No gradient.
      levels: int32 [N, R], indices into `maps`; what is none of them gets zeros.
      strides: pixels per cell of each level.
      out: rows and columns of bins.

    Returns:
      [N, R, out, out, C], dtype of the maps; computed in float32, of bfloat16 maps with products
      right to 16 bits on TPUs and 11 bits on GPUs.

    Raises:
      InputError: if there are no maps, not as many sizes, or strides, as maps, or axes or dtypes
        do not fit.
    """
    counts = len(maps), len(sizes), len(strides)
    if len(set(counts)) != 1:
        raise InputError(
            f"`maps` (={counts[0]}), `sizes` (={counts[1]}) and `strides` (={counts[2]}) must be"
            " as many"
        )
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or levels.shape != boxes.shape[:2]:
        raise InputError(
            f"`boxes` (shape {boxes.shape}) must be [N, R, 4] and `levels` (shape {levels.shape})"
            " [N, R]"
        )
    dtypes, channels = ({str(x.dtype) for x in maps}, {x.shape[-1] for x in maps})
    if len(dtypes) != 1 or len(channels) != 1:
        raise InputError(
            f"`maps` (of {sorted(dtypes)}, {sorted(channels)} channels) must have one dtype and one"
            f" number of channels"
        )
    shapes = tuple(x.shape for x in maps)
    if levels.size == 0:
        return jnp.zeros((*levels.shape, out, out, shapes[0][-1]), maps[0].dtype)
    static = _Static(shapes, maps[0].dtype, tuple(strides), out)
    return _roi_align(static, tuple(maps), tuple(sizes), lax.stop_gradient(boxes), levels)


def box_levels(boxes: Array, levels: int = 4, finest: float = 56.0) -> Array:
    """The level that a box's features are taken from (FPN, equation 1, as mmdet rounds it).

    Args:
      boxes: [..., 4] in pixels.
      levels: how many there are.
      finest: square root of the area, in pixels, from which on the level is 0; it doubles from
        level to level, and smaller boxes are on level 0, too.

    Returns:
      int32 [...] in 0..levels - 1.
    """
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    scale = jnp.sqrt(sides[..., 0] * sides[..., 1])
    level = jnp.floor(jnp.log2(scale / finest + 1e-6))
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


@jax.named_scope("mask_targets")
def mask_targets(masks: Array, boxes: Array, objects: Array, out: int = 28) -> Array:
    """What the masks of objects are within boxes: RoIAlign of the bitmaps, 0.5 or more.

    Args:
      masks: uint8 [N, G, S, L // 8], bitmaps of objects, bits packed along the last axis as by
        `numpy.packbits`.
      boxes: float32 [N, R, 4]: x1, y1, x2, y2 in pixels of the bitmaps, x along columns.
      objects: int32 [N, R]: which of the G; negative for none, whose targets are False.
      out: rows and columns of a target.

    Returns:
      bool [N, R, out, out].
    """
    if masks.size == 0 or objects.size == 0:
        return jnp.zeros((*objects.shape, out, out), bool)
    height, width = masks.shape[2], masks.shape[3] * _BYTE
    grid = _Grid(height, width, min(_MASK_TILE, height), min(_MASK_TILE, width), out)
    size = jnp.broadcast_to(jnp.asarray((height, width), jnp.int32), (masks.shape[0], 2))
    tiles = _tiles(lax.stop_gradient(boxes), size, objects >= 0, grid, multiple=_BYTE)

    def of_image(masks: Array, objects: Array, tiles: _Tiles, means: Array, step: Array) -> Array:
        part = _part(tiles, step, _MASK_TILES, grid)
        places = jnp.stack([objects[part.box], part.row, part.column // _BYTE], 1)
        packed = _cut(masks, places, (1, grid.tile_rows, grid.tile_columns // _BYTE))[:, 0]
        bits = jnp.unpackbits(packed, axis=-1).astype(jnp.float32)
        half = _product("bpy,byx->bpx", part.row_weights, bits)
        return means.at[part.box].add(_product("bqx,bpx->bpq", part.column_weights, half))

    def add(step: Array, means: Array) -> Array:
        return jax.vmap(of_image, (0, 0, 0, 0, None))(masks, objects, tiles, means, step)

    means = jnp.zeros((*objects.shape, out, out), jnp.float32)
    return lax.fori_loop(0, _steps(tiles, _MASK_TILES), add, means) >= 0.5


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _roi_align(
    static: _Static,
    maps: tuple[Array, ...],
    sizes: tuple[Array, ...],
    boxes: Array,
    levels: Array,
) -> Array:
    shape = (*levels.shape, static.out, static.out, static.shapes[0][-1])
    features = jnp.zeros(shape, jnp.float32)
    for level, x in enumerate(maps):
        grid, tiles = _of_level(static, level, sizes[level], boxes, levels)
        features = _add_features(x, tiles, features, grid)
    return features.astype(static.dtype)


def _forward(static: _Static, maps: tuple, sizes: tuple, boxes: Array, levels: Array) -> tuple:
    return _roi_align(static, maps, sizes, boxes, levels), (sizes, boxes, levels)


def _backward(static: _Static, residuals: tuple, gradient: Array) -> tuple:
    sizes, boxes, levels = residuals
    found = []
    for level, shape in enumerate(static.shapes):
        grid, tiles = _of_level(static, level, sizes[level], boxes, levels)
        found.append(_map_gradient(shape, tiles, gradient, grid).astype(static.dtype))
    return tuple(found), None, None, None


_roi_align.defvjp(_forward, _backward)


def _of_level(
    static: _Static, level: int, size: Array, boxes: Array, levels: Array
) -> tuple[_Grid, _Tiles]:
    height, width = static.shapes[level][1:3]
    grid = _Grid(height, width, min(_TILE, height), min(_TILE, width), static.out)
    return grid, _tiles(boxes / static.strides[level], size, levels == level, grid)


def _add_features(x: Array, tiles: _Tiles, features: Array, grid: _Grid) -> Array:
    product = functools.partial(_product, dtype=x.dtype)

    def of_image(x: Array, tiles: _Tiles, features: Array, step: Array) -> Array:
        part = _part(tiles, step, _TILES, grid)
        places = jnp.stack([part.row, part.column, jnp.zeros_like(part.row)], 1)
        window = _cut(x, places, (grid.tile_rows, grid.tile_columns, x.shape[-1]))
        half = product("byqx,byxc->byqc", _each_row(part, grid), window.astype(jnp.float32))
        return features.at[part.box].add(product("bpy,byqc->bpqc", part.row_weights, half))

    def add(step: Array, features: Array) -> Array:
        return jax.vmap(of_image, (0, 0, 0, None))(x, tiles, features, step)

    return lax.fori_loop(0, _steps(tiles, _TILES), add, features)


def _map_gradient(shape: tuple[int, ...], tiles: _Tiles, gradient: Array, grid: _Grid) -> Array:
    product = functools.partial(_product, dtype=gradient.dtype)

    def of_image(total: Array, tiles: _Tiles, gradient: Array, step: Array) -> Array:
        part = _part(tiles, step, _TILES, grid)
        places = jnp.stack([part.row, part.column, jnp.zeros_like(part.row)], 1)
        of_boxes = gradient[part.box].astype(jnp.float32)
        half = product("bpy,bpqc->byqc", part.row_weights, of_boxes)
        return _paste(total, places, product("byqx,byqc->byxc", _each_row(part, grid), half))

    def add(step: Array, total: Array) -> Array:
        return jax.vmap(of_image, (0, 0, 0, None))(total, tiles, gradient, step)

    return lax.fori_loop(0, _steps(tiles, _TILES), add, jnp.zeros(shape, jnp.float32))


def _tiles(boxes: Array, size: Array, chosen: Array, grid: _Grid, multiple: int = 1) -> _Tiles:
    """Cuts up what the chosen of boxes [N, R, 4], in cells, see of maps of sizes [N, 2]."""
    height, width = (jnp.broadcast_to(size[:, i, None], chosen.shape) for i in (0, 1))
    rows = roi_bins.bins(boxes[..., 1], boxes[..., 3], height, grid.out)
    columns = roi_bins.bins(boxes[..., 0], boxes[..., 2], width, grid.out, multiple)
    across = -(-columns.cells // grid.tile_columns)
    count = jnp.where(chosen, -(-rows.cells // grid.tile_rows) * across, 0)
    return _Tiles(rows, columns, across, count, jnp.cumsum(count, 1))


def _steps(tiles: _Tiles, many: int) -> Array:
    """How many steps of so many tiles the image with the most of them needs."""
    return -(-tiles.ends[:, -1].max() // many)


def _part(tiles: _Tiles, step: Array, many: int, grid: _Grid) -> _Part:
    """The tiles of one image that a step is to see. Those behind the last one have no weight."""
    number = step * many + jnp.arange(many, dtype=jnp.int32)
    behind = (tiles.ends[None] <= number[:, None]).sum(1, dtype=jnp.int32)
    box = jnp.minimum(behind, tiles.ends.shape[0] - 1)
    rows, columns, across, count, ends = (jax.tree.map(lambda x: x[box], field) for field in tiles)
    own = number - (ends - count)  # among the box's tiles
    exists = number < ends
    row, row_weights = _weights(
        rows, own // jnp.maximum(across, 1), grid.height, grid.tile_rows, grid.out
    )
    column, column_weights = _weights(
        columns, own % jnp.maximum(across, 1), grid.width, grid.tile_columns, grid.out
    )
    return _Part(box, row, column, jnp.where(exists[:, None, None], row_weights, 0), column_weights)


def _weights(
    bins: roi_bins.Bins, tile: Array, cells: int, length: int, out: int
) -> tuple[Array, Array]:
    """Where tiles begin along an axis [B], and the parts of their cells in the bins [B, out, K]."""
    wanted = bins.first + tile * length
    # A tile that would end beyond the map is moved back, over cells that the one before has seen.
    begin = jnp.minimum(wanted, cells - length)
    cell = begin[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    found = roi_bins.weights(bins, cell - bins.first[:, None], out)
    return begin, jnp.where((cell >= wanted[:, None])[:, None], found, 0)


def _each_row(part: _Part, grid: _Grid) -> Array:
    """The columns' weights [B, rows, out, columns] for products in which nothing is transposed."""
    shape = (len(part.box), grid.tile_rows, grid.out, grid.tile_columns)
    return jnp.broadcast_to(part.column_weights[:, None], shape)


def _cut(x: Array, places: Array, shape: tuple[int, ...]) -> Array:
    """Parts of `x` of a shape, beginning at places [B, axes]: [B, *shape]."""
    return jax.vmap(lambda place: lax.dynamic_slice(x, place, shape))(places)


def _paste(x: Array, places: Array, parts: Array) -> Array:
    """Adds parts [B, ...] to `x`, beginning at places [B, axes]."""
    axes = tuple(range(x.ndim))
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(axis + 1 for axis in axes),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=axes,
    )
    return lax.scatter_add(x, places, parts, numbers, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def _product(subscripts: str, *arrays: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """A product of float32 arrays; `dtype` is what its result is rounded to in the end."""
    # Accelerators would otherwise round float32 to 8 bits. HIGH is three products of bfloat16 on
    # TPUs, where HIGHEST is six, and by schedules three quarters of the time of all RoIAlign; on
    # GPUs it has 11 bits, three more than bfloat16.
    precision = lax.Precision.HIGH if dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    return jnp.einsum(subscripts, *arrays, precision=precision)
