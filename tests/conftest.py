"""Settings for every test; they have to be made before JAX is imported."""

import gc
import os

from background import hear_signals
from quick_compilation import xla_flags

hear_signals()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(8, os.environ.get("XLA_FLAGS", ""))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes objects by the million that live as long as the programs: looking through all of
# them again and again took a tenth of the suite. A module's garbage goes when it is over.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="module")
def _garbage():
    yield
    gc.collect()
    gc.freeze()
