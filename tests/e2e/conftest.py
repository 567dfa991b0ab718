import pytest
from e2e import commands

from convnext_jax.data.digits import ensure_prepared


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Data directory with the digits, and cache of compiled programs, for all processes."""
    base = tmp_path_factory.getbasetemp()
    if "popen-gw" in base.name:
        base = base.parent
    data, cache = base / "tfds", base / "compiled"
    ensure_prepared(data)
    return data, cache


@pytest.fixture
def env(folders):
    return commands.environment(*folders)
