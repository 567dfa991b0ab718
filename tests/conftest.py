"""Settings for every test; they have to be made before JAX is imported."""

import gc
import os
import signal

# A shell starts what runs in the background with interrupts ignored, `nohup` with hangups, and
# children inherit that: processes that tests signal would not notice. Handlers are not inherited.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes to compiling programs that then run once.
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
_ADDED = [f"{name}={value}" for name, value in _FLAGS.items() if name not in _GIVEN]
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *_ADDED]).strip()

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
