"""Where the TPU compiler writes its schedules: a temporary folder of this process.

A program's schedules are hundreds of megabytes of text. They are read after each compilation and
removed, and the folder with them when the process ends, however it ends.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_VARIABLE = "LIBTPU_INIT_ARGS"
_TARGET = "--xla_jf_dump_to="
_PASSES = "--xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"

_folder: Path | None = None
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def requested() -> Iterator[None]:
    """Asks the compiler to write its schedules; it must be loaded inside this context.

    It looks at its arguments only when it is loaded, so this does nothing for one that is. What the
    user has set stays in force; one who has the schedules written elsewhere keeps them there.
    """
    global _folder
    before = os.environ.get(_VARIABLE)
    if _folder is not None or _TARGET in (before or ""):
        yield
        return
    try:
        _folder = _temporary_folder()
    except OSError:  # no room, or no shell: a plan does without
        yield
        return
    asked = f"{_TARGET}{_folder} {_PASSES}"
    os.environ[_VARIABLE] = f"{before} {asked}" if before else asked
    try:
        yield
    finally:
        # Programs that this one starts have folders of their own.
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


@contextlib.contextmanager
def collected() -> Iterator[Path | None]:
    """A folder that has nothing but the schedules of what is compiled in this context, by one.

    Nothing comes from a cache of compiled programs there, for such a program has no schedules. The
    folder is None where they were not requested. They are gone when the context ends.
    """
    with _one_at_a_time:
        if _folder is None:
            yield None
            return
        _clear(_folder)
        try:
            with _no_cached_programs():
                yield _folder
        finally:
            _clear(_folder)


@contextlib.contextmanager
def _no_cached_programs() -> Iterator[None]:
    name = "jax_enable_compilation_cache"
    enabled = jax.config.values[name]
    # JAX looks at the setting once, and again after each reset.
    compilation_cache.reset_cache()
    jax.config.update(name, False)
    try:
        yield
    finally:
        compilation_cache.reset_cache()
        jax.config.update(name, enabled)


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="convnext_jax-schedules-"))
    # An interrupt ends this process without another word. The input of this one ends with it.
    subprocess.Popen(
        ["sh", "-c", 'cat >/dev/null; rm -rf "$1"', "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return folder


def _clear(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
