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
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from shared_folder import shared_folder  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes objects by the million that live as long as the programs: looking through all of
# them again and again took a tenth of the suite. A module's garbage goes when it is over.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module")
def programs_are_kept(tmp_path_factory):
    """Compiles once what commands that a module's tests call in this process compile anew."""
    wanted = {
        "jax_compilation_cache_dir": str(shared_folder(tmp_path_factory) / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: jax.config.values[name] for name in wanted}
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        # JAX looks at the settings once, and again after each reset.
        compilation_cache.reset_cache()
        if values is wanted:
            yield


@pytest.fixture(autouse=True, scope="module")
def _garbage():
    yield
    gc.collect()
    gc.freeze()
