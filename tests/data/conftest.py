import pytest
from data import ilsvrc


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data directory that the digits are written to by whoever opens them first."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """Data directory with a miniature ImageNet, and what the archives held."""
    return ilsvrc.prepared_imagenet(tmp_path_factory.mktemp("imagenet"))
