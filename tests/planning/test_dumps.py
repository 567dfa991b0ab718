"""The folder of schedules: asked for, emptied, and gone with its process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from convnext_jax.planning import dumps


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A process that has not asked yet."""
    monkeypatch.setattr(dumps, "_folder", None)
    monkeypatch.setattr(dumps, "_temporary_folder", lambda: tmp_path)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    return tmp_path


def test_what_the_user_has_set_stays(folder, monkeypatch):
    with dumps.requested():
        assert os.environ["LIBTPU_INIT_ARGS"].startswith(f"--xla_jf_dump_to={folder} ")
    assert "LIBTPU_INIT_ARGS" not in os.environ
    monkeypatch.setattr(dumps, "_folder", None)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_some=1")
    with dumps.requested():
        assert os.environ["LIBTPU_INIT_ARGS"].startswith(f"--xla_some=1 --xla_jf_dump_to={folder} ")
    assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_some=1"


def test_schedules_that_the_user_wants_elsewhere(folder, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_dump_to=/somewhere")
    with dumps.requested():
        assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_jf_dump_to=/somewhere"
    with dumps.collected() as found:
        assert found is None


def test_a_process_without_a_folder(folder, monkeypatch):
    def fails():
        raise OSError("no space left on device")

    monkeypatch.setattr(dumps, "_temporary_folder", fails)
    with dumps.requested():
        assert "LIBTPU_INIT_ARGS" not in os.environ
    with dumps.collected() as found:
        assert found is None


def test_two_compilations_never_mix(folder):
    with dumps.requested():
        pass
    (folder / "1-left_over-01-final_bundles.txt").write_text("x")
    with dumps.collected() as found:
        assert found == folder and not list(folder.iterdir())
        # A program from the cache would have no schedules.
        assert not jax.config.values["jax_enable_compilation_cache"]
        (folder / "2-fusion-01-final_bundles.txt").write_text("x")
        (folder / "sub").mkdir()
    assert not list(folder.iterdir())
    assert jax.config.values["jax_enable_compilation_cache"]
    with pytest.raises(RuntimeError, match="does not compile"), dumps.collected():
        (folder / "3-fusion-01-final_bundles.txt").write_text("x")
        raise RuntimeError("does not compile")
    assert not list(folder.iterdir())


def test_the_folder_goes_with_a_process_that_is_killed(tmp_path):
    code = """
import os, signal
from convnext_jax.planning import dumps
with dumps.requested():
    pass
(dumps._folder / "1-fusion-01-final_bundles.txt").write_text("x")
print(dumps._folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -9
    left = Path(done.stdout.strip())
    assert left.parent == tmp_path
    deadline = time.monotonic() + 30  # a shell has to start, on a busy machine
    while left.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left.exists()
