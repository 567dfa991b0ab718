"""Initial values of parameters, drawn by NumPy.

What JAX draws is compiled for each shape, which takes seconds, and its last bit depends on the
device. These are the same everywhere, and cost what drawing them costs.
"""

import concurrent.futures
import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer

# (key, shape, dtype) -> values, as Flax's layers take it.
Initializer = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An array that is drawn when it is asked for.

    Attributes:
      shape: its shape.
      values: gives it, float32.
    """

    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


# Of the cipher Threefry-2x32 (Salmon et al., 2011), which JAX's keys are made by.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF


@dataclasses.dataclass
class Seeds:
    """Stands in for `nnx.Rngs`: the keys of its `params` stream, the same numbers, without JAX.

    JAX compiles several programs for a first key and runs some for each; for the hundreds of arrays
    of a model that takes longer than drawing them.

    Attributes:
      key: the stream's data, two numbers of 32 bits.
      count: how many keys were drawn.
    """

    key: Sequence[int]
    count: int

    def params(self) -> np.ndarray:
        """The data of the next key, uint32 [2]."""
        self.count += 1
        return fold_in(self.key, self.count - 1)


@contextlib.contextmanager
def seeds(rngs: nnx.Rngs | None) -> Iterator[Any]:
    """What draws the keys of `rngs`, which are drawn from it when the context ends.

    Args:
      rngs: None is `nnx.Rngs(0)`.

    Returns:
      `Seeds`; where JAX traces, as in `jax.jit` and `jax.eval_shape`, and where keys are made by
      another cipher, `rngs`: what is drawn is then no constant of a program.
    """
    traced = isinstance(jax.device_put(np.uint32(0)), Tracer)
    if rngs is None and not traced:
        yield Seeds((0, 0), 0)
        return
    rngs = nnx.Rngs(0) if rngs is None else rngs
    stream = rngs.params
    key, count = stream.key.get_value(), stream.count.get_value()
    traced = traced or isinstance(key, Tracer) or isinstance(count, Tracer) or key.ndim
    if traced or str(jax.random.key_impl(key)) != "threefry2x32":
        yield rngs
        return
    found = Seeds(np.asarray(jax.random.key_data(key)).tolist(), int(count))
    yield found
    stream.count.set_value(jnp.asarray(np.uint32(found.count)))


def fold_in(key: Sequence[int], number: int) -> np.ndarray:
    """The data of `jax.random.fold_in`, uint32 [2], for the data of a key."""
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = key[0], (key[1] + number) & _WORD
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = (x + y) & _WORD
            y = x ^ ((y << rotation | y >> (32 - rotation)) & _WORD)
        x = (x + schedule[(group + 1) % 3]) & _WORD
        y = (y + schedule[(group + 2) % 3] + group + 1) & _WORD
    return np.array((x, y), np.uint32)


_postponed = contextvars.ContextVar("postponed", default=False)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Within this, new models have a `Drawing` in place of each array: nothing is drawn."""
    token = _postponed.set(True)
    try:
        yield
    finally:
        _postponed.reset(token)


def normal(stddev: float) -> Initializer:
    """Values of a normal distribution about 0; traced by JAX too, where a callback draws them."""

    def sample(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = generator.standard_normal(shape, np.float32)
        drawn *= np.float32(stddev)
        return drawn

    return _random(sample)


def uniform(limit: float) -> Initializer:
    """Values spread evenly over [-limit, limit); otherwise as `normal`."""

    def sample(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = generator.random(shape, np.float32)
        drawn *= np.float32(2 * limit)
        drawn -= np.float32(limit)
        return drawn

    return _random(sample)


def _random(sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Initializer:
    def initializer(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        assert dtype == jnp.float32
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        seed, shape = jax.random.key_data(key) if typed else key, tuple(shape)

        def draw(seed: Array) -> np.ndarray:
            generator = np.random.Generator(np.random.SFC64(np.asarray(seed).tolist()))
            return sample(generator, shape)

        if isinstance(seed, Tracer):
            about = jax.ShapeDtypeStruct(shape, jnp.float32)
            return jax.pure_callback(draw, about, seed, vmap_method="sequential")
        return _given(Drawing(shape, lambda: draw(seed)))

    return initializer


def constant(value: float) -> Initializer:
    """The same value everywhere."""

    def initializer(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        del key
        assert dtype == jnp.float32
        shape = tuple(shape)
        return _given(Drawing(shape, lambda: np.full(shape, value, np.float32)))

    return initializer


def full(shape: Sequence[int], value: float) -> Any:
    """An array with the same value everywhere, float32; postponed as those of initialisers."""
    return constant(value)(None, shape)


zeros = constant(0.0)
ones = constant(1.0)


def _given(drawing: Drawing) -> Any:
    return drawing if _postponed.get() else jax.device_put(drawing.values())


def draw(model: nnx.Module) -> None:
    """Draws what was postponed, onto JAX's default device; unless all is still to be postponed."""
    if _postponed.get():
        return
    variables = [
        node
        for _, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable) and isinstance(node.get_value(), Drawing)
    ]
    arrays = placed([v.get_value() for v in variables], [jax.device_put] * len(variables))
    for variable, array in zip(variables, arrays, strict=True):
        variable.set_value(array)


def to_shapes(model: nnx.Module) -> None:
    """Puts a `jax.ShapeDtypeStruct` in the place of each array or `Drawing` of a model."""
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable):
            value = node.get_value()
            dtype = getattr(value, "dtype", jnp.float32)
            node.set_value(jax.ShapeDtypeStruct(value.shape, dtype))


def placed(
    drawings: Sequence[Drawing], places: Sequence[Callable[[np.ndarray], Array]]
) -> list[Array]:
    """Draws arrays on all cores, and gives each to what puts it on its devices."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = pool.map(lambda drawing: drawing.values(), drawings)
        # In this thread, which JAX's default device may be set for.
        return [place(array) for array, place in zip(values, places, strict=True)]
