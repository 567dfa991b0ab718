"""The benchmark of creating models, and what it found last."""

import json

import pytest

from benchmarks import creating
from benchmarks.readme import RESULTS


@pytest.mark.parametrize("file", sorted(RESULTS.glob("creating-*.json")), ids=lambda f: f.stem)
def test_table_of_committed_results_is_in_the_document(file):
    result = json.loads(file.read_text())
    assert creating.table(result) in creating.PAGE.read_text()
    for model, limit in creating.LIMITS.items():
        assert result["models"][model]["ours"]["create_seconds"] <= limit


def test_a_model_that_comes_later_than_promised_fails(tmp_path, monkeypatch):
    row = {"import_seconds": 1.0, "create_seconds": 1.5, "create_seconds_most": 2.0}
    found = {model: {"ours": row} for model in creating.MODELS}
    monkeypatch.setattr(creating, "measure", lambda rounds: found)
    monkeypatch.setattr(creating, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- creating -->\n<!-- end -->\n")
    monkeypatch.setattr(creating, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["creating"])
    with pytest.raises(SystemExit, match=r"later than promised: \{'convnext_tiny': 1.5\}"):
        creating.main()
    assert "| `convnext_tiny` | ours | 1.0 s | 1.50 s | 2.00 s | 1.00 |" in page.read_text()


def test_one_process_says_how_long_it_took():
    importing, making = creating.once("ours", "convnext_atto")
    assert 0 < making < importing + 60
