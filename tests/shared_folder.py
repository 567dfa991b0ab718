"""A folder that the processes of one test session share."""

from pathlib import Path

import pytest


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's folder; several processes may write to it at once."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "popen-gw" in base.name else base
