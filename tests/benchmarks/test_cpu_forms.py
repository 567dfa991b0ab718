"""The table of forms for CPUs is that of the committed results."""

import json
import types

import pytest

from benchmarks import cpu_forms
from benchmarks.readme import RESULTS


def test_table_of_committed_results_is_in_the_document():
    page = cpu_forms.PAGE.read_text()
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("cpu_forms-*.json"))]
    assert any(cpu_forms.table(result) in page for result in found)
    for result in found:
        with_settings, without = result["seconds"]["set"], result["seconds"]["as it is"]
        assert with_settings.keys() == without.keys()
        for name, (before, now) in without.items():
            ratio = result["ratios"][f"without {name}, the allocator as it is"]
            assert ratio == pytest.approx(before / now)
            assert ratio > 1, name  # or the form would not be used


def test_short_runs_are_timed_in_a_row_and_without_the_first(monkeypatch):
    now, calls = [0.0], []
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(cpu_forms, "time", clock)

    def run(name, seconds):
        calls.append(name)
        now[0] += seconds if calls.count(name) > 1 else 9.0  # as if it were slow to start

    runs = (lambda: run("a", 0.06), lambda: run("b", 0.2))
    assert cpu_forms.in_turns(runs, 3) == pytest.approx([0.06, 0.2])
    assert "".join(calls) == "ab" + "ab" + "aab" * 3  # started, tried, in turns
