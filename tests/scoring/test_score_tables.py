"""What `evaluate` writes for spreadsheets, where it cannot be put in its place."""

from pathlib import Path

import numpy as np
import pytest

from convnext_jax import evaluate
from convnext_jax.errors import InputError


def test_a_table_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path, monkeypatch):
    """As in a folder like /tmp, where another user has a file of that name."""
    path = tmp_path / "classes.csv"
    path.write_text("another user's")

    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"`--per_class` \(=.*classes.csv\) cannot be written"):
        evaluate.write_classes(path, {"f1": np.array([0.5, np.nan])}, ["a", "b"])
    assert [each.name for each in tmp_path.iterdir()] == ["classes.csv"]
    assert path.read_text() == "another user's"
