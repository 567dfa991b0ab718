"""The small runs of docs/training.md: what they must show, and that the page has them."""

import json
import statistics

import pytest

from benchmarks import training
from benchmarks.readme import RESULTS, ROOT, rewrite


def check(runs):
    assert min(runs["whole recipe"]["top1"]) > 0.98
    means = {name: statistics.mean(run["top1"]) for name, run in runs.items()}
    assert means["5 to 9, fine-tuned"] > means["5 to 9, random weights"]


def test_the_committed_runs_show_it_and_the_page_has_them():
    results = json.loads((RESULTS / "training.json").read_text())
    check(results["runs"])
    page = (ROOT / "docs" / "training.md").read_text()
    assert page == rewrite(page, {"measured": training.table(results)})


@pytest.mark.slow  # twelve runs
def test_new_runs_show_it(tmp_path):
    check(training.measure(tmp_path))
