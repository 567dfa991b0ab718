"""The depthwise convolution on NVIDIA GPUs: two Pallas kernels on the Triton backend.

Both kernels work on strips, up to 8 neighbouring pixels of an image row, and on one row of the
filter at a time. The pixels that a strip needs for it are loaded into registers once and used for
every output they reach: k * (T + k - 1) / T loads for each output of a strip of T pixels, which is
13 instead of 49 for k = 7 and T = 7. What neighbouring strips load again comes from the caches.
The lanes of a warp lie along channels, where NHWC is contiguous. Nothing is padded: loads beyond
the border are masked. Sums are kept in float32 and rounded once.

Triton and not Mosaic GPU, because one kernel then serves every device since Ampere, and because
the operation uses neither tensor cores nor bulk copies, which Mosaic GPU exists for. JAX 0.11 calls
this backend deprecated; the package's upper bound on JAX stays below the release that drops it.

Inside `shard_map` these functions need `check_vma=False`, as every Pallas call without a declared
type for its manual axes does. Under `jit` a sharded batch needs nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from convnext_jax.ops.depthwise_rules import filter_gradient_with_rules, forward_with_rules

# Pallas is imported by the functions that use it, which run only where a GPU is: it would add a
# fifth to the time that importing JAX takes.

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
# Offsets into an array are 32-bit integers.
_MOST_ELEMENTS = 2**31 - 1
# The filter gradient holds k * k sums in registers; those of larger filters do not fit.
_LARGEST_FILTER = 11
_WARPS = 4
_THREADS = 32 * _WARPS
# Programs that the filter gradient is cut into, at most: three times what the 132 processors of an
# H100 or H200 take at once, three each by their registers.
_PROGRAMS = 3 * 3 * 132
# Pixels that each of them sums at least, so that the k * k sums it writes are few beside them. With
# it the 14 x 14 and 7 x 7 pixels of 128 images are a little less than two and one times so many.
_PIXELS_PER_PART = 384


def device_ready() -> bool:
    """Whether the kernels can be compiled for the GPUs of this process: NVIDIA, Ampere or newer.

    Initialises JAX's backends, so call it while tracing, not while importing.
    """
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:  # What JAX raises where there is no such device.
        return False
    return all(float(device.compute_capability) >= 8.0 for device in devices)


def supported(x: Array, kernel: Array) -> bool:
    """Whether the kernels take images `x` [N, H, W, C] and filters `kernel` [k, k, 1, C].

    They take float32, bfloat16 and float16, filters up to 11x11, and fewer than 2^31 elements.
    """
    few = 0 < x.size <= _MOST_ELEMENTS
    return few and x.dtype in _DTYPES and kernel.shape[0] <= _LARGEST_FILTER


@functools.partial(jax.jit, static_argnames="interpret")
def pallas_forward(x: Array, kernel: Array, *, interpret: bool = False) -> Array:
    """The convolution; arguments and result are those of `depthwise_conv`.

    With `interpret`, here and below, the kernel is emulated by XLA operations on any platform, for
    tests.
    """
    return _forward_on_devices(interpret)(x, kernel)


@functools.partial(jax.jit, static_argnames="interpret")
def pallas_input_gradient(x: Array, kernel: Array, dy: Array, *, interpret: bool = False) -> Array:
    """Gradient with respect to `x`: the same convolution of `dy` with the filter turned around."""
    del x
    return pallas_forward(dy, kernel[::-1, ::-1], interpret=interpret)


@functools.partial(jax.jit, static_argnames="interpret")
def pallas_filter_gradient(x: Array, kernel: Array, dy: Array, *, interpret: bool = False) -> Array:
    """Gradient with respect to `kernel`: sums over parts of the batch, then over the parts.

    Nothing is added atomically, so every run gives the same bits.
    """
    sums = _filter_gradient_on_devices(kernel.shape[0], interpret)(x, dy)
    return sums.astype(kernel.dtype)


class Tile(NamedTuple):
    """What a program works on at a time: `strips` x `channels` values side by side, in threads."""

    width: int  # Pixels of a strip, which follow one another in the same thread.
    strips: int
    channels: int


def choose_tile(width: int, channels: int, per_thread: int, longest: int = 8) -> Tile:
    """The tile for images `width` pixels wide; each thread takes `per_thread` channels of a strip.

    A strip has 4 to `longest` pixels (fewer in narrower images): as many as waste the fewest in the
    last strip of a row, and the most of those. A program takes 32 channels, whose 64 bytes of
    bfloat16 are two sectors of memory, or 16 where 32 would leave more lanes without a channel. The
    number of strips is what occupies all threads.
    """
    sizes = range(min(width, longest), min(width, 4) - 1, -1)
    strip = min(sizes, key=lambda size: -(-width // size) * size)
    block = min((32, 16), key=lambda size: -(-channels // size) * size)
    return Tile(strip, _THREADS * per_thread // block, block)


class _Cut(NamedTuple):
    """Images [number, height, width, channels], cut into blocks of strips and of channels."""

    number: int
    height: int
    width: int
    channels: int
    tile: Tile

    @property
    def columns(self) -> int:
        """Strips in a row of an image."""
        return -(-self.width // self.tile.width)

    def reach(self, k: int) -> range:
        """Pixels of a strip's row that the filter reaches, counted from the strip's first."""
        if self.columns == 1:  # Nothing but zeros beyond either end.
            return range(self.width)
        return range(-(k // 2), self.tile.width + k // 2)

    @property
    def strip_blocks(self) -> int:
        return -(-self.number * self.height * self.columns // self.tile.strips)

    @property
    def channel_blocks(self) -> int:
        return -(-self.channels // self.tile.channels)


class _Place(NamedTuple):
    """Where the strips of a block lie. Arrays broadcast to [strips, channels] of the tile."""

    row: Array
    column: Array  # Of a strip's first pixel.
    channel: Array
    offset: Array  # Of a strip's first pixel and the channel, in the flat array.
    exists: Array  # False past the last strip and the last channel.


def _locate(cut: _Cut, strip_block: Array, channel_block: Array) -> _Place:
    strip = strip_block * cut.tile.strips + lax.iota(jnp.int32, cut.tile.strips)[:, None]
    channel = channel_block * cut.tile.channels + lax.iota(jnp.int32, cut.tile.channels)[None]
    # Strips that follow one another lie below one another: these share most of their pixels.
    above, row = lax.div(strip, cut.height), lax.rem(strip, cut.height)
    image, column = lax.div(above, cut.columns), lax.rem(above, cut.columns) * cut.tile.width
    offset = ((image * cut.height + row) * cut.width + column) * cut.channels + channel
    exists = image < cut.number
    if cut.channels % cut.tile.channels:
        exists = exists & (channel < cut.channels)
    return _Place(row, column, channel, offset, exists)


def _mask(cut: _Cut, place: _Place, pixel: int) -> Array:
    """Which of `place` exist and have pixel number `pixel` of their strip in the image's width."""
    mask = place.exists
    if pixel < 0:
        mask = mask & (place.column >= -pixel)
    elif pixel >= cut.tile.width or cut.width % cut.tile.width:
        mask = mask & (place.column < cut.width - pixel)
    return jnp.broadcast_to(mask, place.offset.shape)


def _at(ref: Any, offset: Array) -> Any:
    """The places of an array that are so far from its start, whatever its axes.

    An array that is flattened for the kernel would be one of its own to XLA: what makes it would be
    written in float32, read, rounded and written again.
    """
    return ref.at[(*(0,) * (len(ref.shape) - 1), offset)]


def _load_pixels(ref: Any, cut: _Cut, place: _Place, below: Any, pixels: range) -> dict[int, Array]:
    """The strips' pixels `below` rows further down, by number, in float32; zeros beyond borders."""
    from jax.experimental.pallas import triton

    row = place.row + below
    place = place._replace(
        offset=place.offset + below * (cut.width * cut.channels),
        exists=place.exists & (row >= 0) & (row < cut.height),
    )
    return {
        pixel: triton.load(
            _at(ref, place.offset + pixel * cut.channels), mask=_mask(cut, place, pixel), other=0
        ).astype(jnp.float32)
        for pixel in pixels
    }


def _forward_program(
    x: Any, kernel: Any, y: Any, *, cut: _Cut, k: int, store: Callable, multiply_add: Callable
) -> None:
    """Computes one tile of `y` from `x` and `kernel`."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    # Programs for the channels of the same strips run side by side: they share memory pages.
    program, tile = pl.program_id(0), cut.tile
    place = _locate(cut, lax.div(program, cut.channel_blocks), lax.rem(program, cut.channel_blocks))
    # A weight is loaded once for each strip, so that every thread gets its own from the cache
    # instead of from another thread.
    channel = jnp.broadcast_to(place.channel, place.offset.shape)

    def add_filter_row(i: Any, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        pixels = _load_pixels(x, cut, place, i - k // 2, cut.reach(k))
        sums = list(totals)
        for j in range(k):
            tap = _at(kernel, (i * k + j) * cut.channels + channel)
            weight = triton.load(tap, mask=channel < cut.channels, other=0).astype(jnp.float32)
            for t in range(tile.width):
                if t + j - k // 2 in pixels:
                    sums[t] = multiply_add(pixels[t + j - k // 2], weight, sums[t])
        return tuple(sums)

    zeros = (jnp.zeros(place.offset.shape, jnp.float32),) * tile.width
    for pixel, total in enumerate(lax.fori_loop(0, k, add_filter_row, zeros)):
        value = total.astype(y.dtype)
        store(y, place.offset + pixel * cut.channels, value, _mask(cut, place, pixel))


def _filter_gradient_program(
    x: Any,
    dy: Any,
    sums: Any,
    *,
    cut: _Cut,
    k: int,
    length: int,
    store: Callable,
    multiply_add: Callable,
) -> None:
    """Sums over `length` blocks of strips into `sums`, [parts, k, k, 1, channels]."""
    from jax.experimental import pallas as pl

    program, tile = pl.program_id(0), cut.tile
    part, channel_block = lax.div(program, cut.channel_blocks), lax.rem(program, cut.channel_blocks)

    def add_block(block: Any, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        place = _locate(cut, part * length + block, channel_block)
        slopes = _load_pixels(dy, cut, place, 0, range(tile.width))
        sums = list(totals)
        for i in range(k):
            pixels = _load_pixels(x, cut, place, i - k // 2, cut.reach(k))
            for j in range(k):
                for t, slope in slopes.items():
                    if t + j - k // 2 in pixels:
                        pixel = pixels[t + j - k // 2]
                        sums[i * k + j] = multiply_add(pixel, slope, sums[i * k + j])
        return tuple(sums)

    zeros = (jnp.zeros((tile.strips, tile.channels), jnp.float32),) * (k * k)
    totals = lax.fori_loop(0, length, add_block, zeros)
    channel = channel_block * tile.channels + lax.iota(jnp.int32, tile.channels)
    for tap, total in enumerate(totals):
        offset = (part * (k * k) + tap) * cut.channels + channel
        store(sums, offset, total.sum(0), channel < cut.channels)


def _call(program: Callable, name: str, programs: int, out: Any, interpret: bool) -> Callable:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def store(ref: Any, offset: Array, value: Array, mask: Array) -> None:
        if interpret:
            # Interpreted, what is masked is written too, with what was there before; that would
            # undo another lane's write at the same place. Past the end nothing is written.
            offset = jnp.where(mask, offset, ref.shape[0])
        triton.store(_at(ref, offset), value, mask=mask)

    def multiply_add(a: Array, b: Array, total: Array) -> Array:
        if interpret:
            return a * b + total
        # XLA has the two operations rounded apart, which the assembler may not join: twice the
        # instructions.
        (total,) = triton.elementwise_inline_asm(
            "fma.rn.f32 $0, $1, $2, $3;",
            args=(a, b, total),
            constraints="=f,f,f,f",
            pack=1,
            result_shape_dtypes=(jax.ShapeDtypeStruct(total.shape, total.dtype),),
        )
        return total

    # Interpreted, only a flat array has places so far from its start.
    flat = jax.ShapeDtypeStruct((math.prod(out.shape),), out.dtype)
    call = pl.pallas_call(
        functools.partial(program, store=store, multiply_add=multiply_add),
        out_shape=flat if interpret else out,
        grid=(programs,),
        # No pipelining through shared memory: the caches and other warps hide the latency.
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name=name,
    )

    def called(*arrays: Array) -> Array:
        if interpret:
            return call(*(a.reshape(-1) for a in arrays)).reshape(out.shape)
        return call(*arrays)

    return called


def _forward(x: Array, kernel: Array, *, interpret: bool) -> Array:
    """The convolution on one device."""
    k = kernel.shape[0]
    number, height, width, channels = x.shape
    cut = _Cut(number, height, width, channels, choose_tile(width, channels, per_thread=4))
    program = functools.partial(_forward_program, cut=cut, k=k)
    programs = cut.strip_blocks * cut.channel_blocks
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _call(program, "depthwise_forward", programs, out, interpret)(x, kernel)


def _filter_gradient(x: Array, dy: Array, *, k: int, interpret: bool) -> Array:
    """The gradient [k, k, 1, C] on one device, in float32."""
    # Each thread holds k * k sums for each of its channels, and its pixels, in 255 registers.
    per_thread = 2 if k <= 7 else 1
    number, height, width, channels = x.shape
    tile = choose_tile(width, channels, per_thread, longest=7)
    cut = _Cut(number, height, width, channels, tile)
    length = max(
        math.ceil(_PIXELS_PER_PART / (tile.strips * tile.width)),
        math.ceil(cut.strip_blocks * cut.channel_blocks / _PROGRAMS),
    )
    parts = math.ceil(cut.strip_blocks / length)
    program = functools.partial(_filter_gradient_program, cut=cut, k=k, length=length)
    out = jax.ShapeDtypeStruct((parts, k, k, 1, cut.channels), jnp.float32)
    call = _call(program, "depthwise_filter_gradient", parts * cut.channel_blocks, out, interpret)
    return call(x, dy).sum(0)


@functools.cache
def _forward_on_devices(interpret: bool) -> Callable:
    return forward_with_rules(functools.partial(_forward, interpret=interpret))


@functools.cache
def _filter_gradient_on_devices(k: int, interpret: bool) -> Callable:
    return filter_gradient_with_rules(functools.partial(_filter_gradient, k=k, interpret=interpret))
