"""One set of miniatures for all tests of scoring."""

import pytest
from miniature import Sets, save_timm, timm_model


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Miniature test sets, and the model that they were labelled with."""
    return Sets(tmp_path_factory.mktemp("sets"), timm_model())


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The same model as timm's file."""
    return save_timm(timm_model(), tmp_path_factory.mktemp("weights") / "small")
