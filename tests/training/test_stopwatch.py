"""The stopwatch: parts follow one another, and make up the whole."""

import time

import pytest

from convnext_jax.training.stopwatch import Stopwatch


def test_parts_make_up_the_time_since_the_beginning(monkeypatch):
    now = iter([3.0, 3.5, 3.52, 10.0, 10.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    stopwatch = Stopwatch(began=1.0)
    assert stopwatch.lap("importing") == 2.0
    assert stopwatch.lap("data") == 0.5
    stopwatch.lap("nothing")
    stopwatch.lap("importing")  # the rest of it
    assert stopwatch.seconds == 9.0 == pytest.approx(sum(stopwatch.parts.values()))
    assert str(stopwatch) == "8.5 s importing, 0.5 s data"


def test_a_stopwatch_begins_now():
    assert Stopwatch().seconds < 1.0
