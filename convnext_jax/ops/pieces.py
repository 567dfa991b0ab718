"""Functions of pixels, applied to a map piece by piece, in memory that is used again."""

import math
from collections.abc import Callable

import jax
from jax import Array, lax

# Bytes of a map that no cache holds.
_LARGE = 2**25
# Of a piece of it that the allocator keeps, and that is enough for a product of matrices.
_PIECE = 10**7


def in_pieces(function: Callable[..., Array], *maps: Array, width: int) -> Array:
    """Applies a function of pixels to maps; on CPUs, where they are large, piece by piece.

    The widest map inside a block is four times as large as what goes in and comes out. As a whole
    it is fresh memory in each call, which the system faults in page by page. Docs/performance.md
    has what pieces save: nothing where the memory allocator is set to keep it. In training, whose
    backward pass wants what is inside, they gain nothing.
    Gradients, of saliency maps for instance, compute each piece again instead of keeping its
    inside. A map that may lie on several devices stays whole: any, where there are several,
    unless a mesh of one device is around.

    Args:
      function: of arrays [..., C]; gives [..., D], each place of it from the same place of those.
      *maps: [N, H, W, C], each with channels of its own.
      width: channels of the widest array inside `function`, which counts as float32.
    """
    n, height, row, _ = maps[0].shape
    mesh = jax.sharding.get_abstract_mesh()
    devices = jax.device_count() if mesh.empty else mesh.size
    if devices > 1 or not all(isinstance(size, int) for size in (n, height, row)):
        return function(*maps)
    rows = n * height
    count = pieces_of(rows, 4 * row * width)
    if count == 1:
        return function(*maps)

    # Nothing is moved out of a loop's round, so nothing must be kept from that.
    again = jax.checkpoint(function, prevent_cse=False)

    def pieces(*maps: Array) -> Array:
        cut = [a.reshape(count, rows // count * row, a.shape[-1]) for a in maps]
        y = lax.map(lambda piece: again(*piece), cut)
        return y.reshape(n, height, row, y.shape[-1])

    return lax.platform_dependent(*maps, cpu=pieces, default=function)


def pieces_of(rows: int, size: int) -> int:
    """How many equal pieces of whole rows a map is cut into: the fewest that are small enough.

    One, if those would be far smaller than need be: the rows are a prime number, say.

    Args:
      rows: of all images.
      size: bytes of one.
    """
    if rows * size <= _LARGE:
        return 1
    least = math.ceil(rows * size / _PIECE)
    return next((n for n in range(least, min(4 * least, rows) + 1) if rows % n == 0), 1)
