import pytest
from e2e import commands
from shared_folder import shared_folder

from convnext_jax.data.digits import ensure_prepared


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Data directory with the digits, and cache of compiled programs, for all processes."""
    base = shared_folder(tmp_path_factory)
    data, cache = base / "tfds", base / "compiled"
    ensure_prepared(data)
    return data, cache


@pytest.fixture
def env(folders):
    return commands.environment(*folders)
