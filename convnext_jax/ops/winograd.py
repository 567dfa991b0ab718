"""Dense 3x3 convolution by Winograd's minimal filtering, for CPUs: fewer products of matrices.

F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv 1509.09308, section 4.1): the 4 x 4 places that 2 x 2 results are made of and the 3 x 3 taps
of a filter are transformed, multiplied place by place and transformed back, with 16 products where
a convolution has 36. The transforms add and subtract neighbours, so results are about as close as a
convolution's; larger tiles would save more and round worse.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

# Channels in times channels out, and tiles of a batch, from which on it is faster than XLA's.
_CHANNELS, _TILES = 2**15, 2**9

_Line = Sequence[Array]
_Square = Sequence[_Line]


def suits(kernel: Array | jax.ShapeDtypeStruct, results: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether a convolution with stride 1 is faster this way on CPUs, and as exact.

    Args:
      kernel: [k, l, C, D].
      results: [N, H', W', D], or, for the gradient of images, those: [N, H, W, C].
    """
    n, height, width, _ = results.shape
    if not isinstance(n, int):
        return False  # an export for any number of images
    return (
        kernel.shape[:2] == (3, 3)
        and kernel.dtype == results.dtype == jnp.float32  # or the transforms would be rounded
        and kernel.shape[2] * kernel.shape[3] >= _CHANNELS
        and n * (height // 2) * (width // 2) >= _TILES
    )


def winograd_conv(x: Array, kernel: Array) -> Array:
    """Convolves without padding, with stride 1.

    Args:
      x: [N, H, W, C].
      kernel: [3, 3, C, D], same dtype.

    Returns:
      [N, H - 2, W - 2, D].
    """
    n, height, width, _ = x.shape
    filters = _transformed(_of_filter, kernel)
    products = _each(lambda places, filters: places @ filters, _tiles(x), filters)
    results = _transformed(_to_results, products)
    shape = n, (height - 1) // 2, (width - 1) // 2, -1
    rows = [jnp.stack([y.reshape(shape) for y in row], axis=3) for row in results]
    whole = jnp.stack(rows, axis=2).reshape(n, shape[1] * 2, shape[2] * 2, -1)
    # Or each use of the result would add up the products anew.
    return lax.optimization_barrier(whole)[:, : height - 2, : width - 2]


def winograd_filter_gradient(x: Array, dy: Array) -> Array:
    """The gradient of the filter of `winograd_conv`.

    Args:
      x: [N, H, W, C].
      dy: [N, H - 2, W - 2, D], same dtype.

    Returns:
      [3, 3, C, D].
    """
    tiles = _tiles(x)
    dy = lax.optimization_barrier(_even(dy))
    results = [[dy[:, i::2, j::2] for j in range(2)] for i in range(2)]
    spread = _transformed(_of_results, results)
    products = _each(lambda a, b: a.T @ b.reshape(-1, b.shape[-1]), tiles, spread)
    taps = _transformed(_to_taps, products)
    return jnp.stack([jnp.stack(row) for row in taps])


def _tiles(x: Array) -> _Square:
    """The transformed places [4, 4] of all tiles, each [tiles, C]."""
    x = lax.optimization_barrier(_even(x))
    rows, columns = x.shape[1] - 2, x.shape[2] - 2  # of results
    places = [[x[:, i : i + rows : 2, j : j + columns : 2] for j in range(4)] for i in range(4)]
    found = _transformed(_of_places, places)
    return [[place.reshape(-1, x.shape[-1]) for place in row] for row in found]


def _of_places(d: _Line) -> _Line:
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _of_filter(k: _Line) -> _Line:
    return k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]


def _to_results(m: _Line) -> _Line:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_results(y: _Line) -> _Line:
    """The transpose of `_to_results`, as `_to_taps` is that of `_of_filter`."""
    return y[0], y[0] + y[1], y[0] - y[1], -y[1]


def _to_taps(g: _Line) -> _Line:
    return g[0] + (g[1] + g[2]) / 2, (g[1] - g[2]) / 2, (g[1] + g[2]) / 2 + g[3]


def _even(x: Array) -> Array:
    """With a row and a column of zeros where these are odd in number."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))


def _transformed(transform: Callable[[_Line], _Line], square: _Square | Array) -> _Square:
    """The transform of each row, then of each column."""
    rows = [transform(row) for row in square]
    columns = [transform(column) for column in zip(*rows, strict=True)]
    return list(zip(*columns, strict=True))


def _each(product: Callable[[Array, Array], Array], left: _Square, right: _Square) -> _Square:
    """The products of what lies at the same place."""
    pairs = [zip(*rows, strict=True) for rows in zip(left, right, strict=True)]
    return [[product(a, b) for a, b in row] for row in pairs]
