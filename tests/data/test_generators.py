"""The first numbers of many generators are those of NumPy's generators."""

import numpy as np
import pytest

from convnext_jax.data.generators import first_uniforms


@pytest.mark.parametrize(
    "prefix", [(0, 0), (5, 3), (2**32 - 1, 299), (2**40 + 17, 2), (2**100 + 1, 2**33), (1,), ()]
)
def test_numbers_are_numpys(prefix):
    last = np.array([0, 1, 2, 117_265, 2**32 - 1])
    found = first_uniforms(prefix, last, 9)
    expected = [np.random.default_rng((*prefix, int(i))).random(9) for i in last]
    np.testing.assert_array_equal(found, expected)


def test_of_none_there_are_none():
    assert first_uniforms((1, 2), np.zeros(0, np.int64), 3).shape == (0, 3)
