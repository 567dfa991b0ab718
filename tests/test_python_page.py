"""docs/python.md runs as it stands."""

import re
from pathlib import Path

import jax

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 8
    # A page is for everyone, also for who adds arrays of different ranks.
    with jax.numpy_rank_promotion("allow"):
        exec(compile("".join(blocks), str(PAGE), "exec"), {"__name__": "page"})
    assert "convnext_atto Preprocessing(input_size=64" in capsys.readouterr().out
