"""The first numbers of many generators at once: `np.random.default_rng(...).random(count)` of each.

Making a generator takes tens of microseconds, which for every example of an epoch are seconds. This
is NumPy's arithmetic, `SeedSequence` and PCG64 (XSL-RR, 128 bits), on arrays; NumPy keeps both as
they are (NEP 19), and a test holds this to them.
"""

from collections.abc import Sequence

import numpy as np

_POOL = 4
_BITS = np.uint32(16)
_INIT_A, _MULTIPLIER_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULTIPLIER_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
# PCG64's multiplier, upper and lower half.
_UPPER, _LOWER = np.uint64(2549297995355413924), np.uint64(4865540595714422341)
_HALF = np.uint64(32)
_LOW_HALF = np.uint64(2**32 - 1)

# 128-bit numbers: upper and lower halves, uint64 [n] each.
_Wide = tuple[np.ndarray, np.ndarray]


def first_uniforms(prefix: Sequence[int], last: np.ndarray, count: int) -> np.ndarray:
    """What `np.random.default_rng((*prefix, i)).random(count)` gives, for each i of `last`.

    Args:
      prefix: what all seeds begin with, each 0 or more.
      last: int [n], what each ends with, 0..2^32-1.
      count: numbers of each generator.

    Returns:
      float64 [n, count], in [0, 1).
    """
    words = [np.uint32(word) for number in prefix for word in _words(number)]
    entropy: list[np.ndarray] = [np.full(len(last), word) for word in words]
    entropy.append(np.asarray(last).astype(np.uint32))
    with np.errstate(over="ignore"):  # of scalars; arrays wrap around in silence
        state, increment = _seeded(_generated(_pool(entropy)))
        result = np.empty((len(last), count))
        for i in range(count):
            state = _stepped(state, increment)
            result[:, i] = (_output(state) >> np.uint64(11)) * 2.0**-53
    return result


def _words(number: int) -> list[int]:
    """A number in digits of 32 bits, the lowest first."""
    found = [number & 0xFFFFFFFF]
    while number := number >> 32:
        found.append(number & 0xFFFFFFFF)
    return found


class _Hash:
    """`SeedSequence`'s hash, whose constant changes with each use."""

    def __init__(self, constant: int, multiplier: int):
        self._constant, self._multiplier = constant, multiplier

    def __call__(self, value: np.ndarray) -> np.ndarray:
        value = value ^ np.uint32(self._constant)
        self._constant = self._constant * self._multiplier & 0xFFFFFFFF
        value = value * np.uint32(self._constant)
        return value ^ (value >> _BITS)


def _pool(entropy: list[np.ndarray]) -> list[np.ndarray]:
    """Mixes entropy, uint32 [n] each, into a pool of four such words."""
    hashed = _Hash(_INIT_A, _MULTIPLIER_A)

    def mixed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        result = _MIX_LEFT * one - _MIX_RIGHT * other
        return result ^ (result >> _BITS)

    zero = np.zeros_like(entropy[0])
    pool = [hashed(word) for word in (entropy + [zero] * _POOL)[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        pool = [mixed(each, hashed(word)) for each in pool]
    return pool


def _generated(pool: list[np.ndarray]) -> list[np.ndarray]:
    """Four words of 64 bits, uint64 [n], of a pool."""
    hashed = _Hash(_INIT_B, _MULTIPLIER_B)
    words = [hashed(pool[i % _POOL]).astype(np.uint64) for i in range(8)]
    return [low | high << _HALF for low, high in zip(words[::2], words[1::2], strict=True)]


def _seeded(words: list[np.ndarray]) -> tuple[_Wide, _Wide]:
    """PCG64's state and increment."""
    one, top = np.uint64(1), np.uint64(63)
    increment = words[2] << one | words[3] >> top, words[3] << one | one
    # A step from state 0 gives the increment.
    return _stepped(_sum(increment, (words[0], words[1])), increment), increment


def _stepped(state: _Wide, increment: _Wide) -> _Wide:
    upper, lower = _product(state[1], _LOWER)
    upper = upper + state[0] * _LOWER + state[1] * _UPPER
    return _sum((upper, lower), increment)


def _output(state: _Wide) -> np.ndarray:
    value, turn = state[0] ^ state[1], state[0] >> np.uint64(58)
    return value >> turn | value << ((np.uint64(64) - turn) & np.uint64(63))


def _sum(one: _Wide, other: _Wide) -> _Wide:
    lower = one[1] + other[1]
    return one[0] + other[0] + (lower < one[1]), lower


def _product(one: np.ndarray, other: np.uint64) -> _Wide:
    """All 128 bits of a product of 64-bit numbers."""
    one_high, one_low = one >> _HALF, one & _LOW_HALF
    other_high, other_low = other >> _HALF, other & _LOW_HALF
    low = one_low * other_low
    middle = one_high * other_low + (low >> _HALF)
    other_middle = one_low * other_high + (middle & _LOW_HALF)
    upper = one_high * other_high + (middle >> _HALF) + (other_middle >> _HALF)
    return upper, other_middle << _HALF | low & _LOW_HALF
