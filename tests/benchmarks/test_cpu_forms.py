"""The table of forms for CPUs is that of the committed results."""

import json

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


def test_turns_are_timed_without_the_first():
    calls = []
    seconds = cpu_forms.in_turns((lambda: calls.append("a"), lambda: calls.append("b")), 3)
    assert calls == ["a", "b"] * 4 and all(0 <= each < 1 for each in seconds)
