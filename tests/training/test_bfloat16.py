"""A bfloat16 run beside a float32 run: the same digits, weights and draws."""

import json

import pytest

from benchmarks import bfloat16

# The two runs differ by roundings to 8 binary places, 2^-9 of a value each, of either sign and many
# to a loss; AdamW and 200 steps make more of them. Where only the draws of stochastic depth differ,
# the same means differ by 3.7 %. What is lost for good, as sums in bfloat16 lose it, shows as
# slower learning: that difference grows along the run.
MOST = 2**-6


@pytest.mark.slow
def test_a_short_run():
    # Without most of the warm-up, in which nothing is learnt that could differ.
    found = bfloat16.compare(50, "--config.optim.warmup_epochs=0.2", devices=1)
    assert bfloat16.difference(found, "bfloat16") < MOST
    assert found["bfloat16"] != found["float32"]
    assert found["float32"][-1] < 0.9 * found["float32"][0]  # it does train


def test_the_committed_run_of_two_hundred_steps():
    found = json.loads(bfloat16.FILE.read_text())["losses"]
    assert list(found) == list(bfloat16.RUNS)
    assert {len(run) for run in found.values()} == {200}
    for name in ("bfloat16", "bfloat16, summed so"):
        assert bfloat16.difference(found, name) < MOST
        # Less than what is chance in any run.
        assert bfloat16.difference(found, name) < bfloat16.difference(found, "float32, other draws")
