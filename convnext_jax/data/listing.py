"""Lists the files of a user's own folders, all of them or not at all."""

import collections
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convnext_jax.errors import InputError, Lost
from convnext_jax.retry import Result, is_passing, retrying

# Examples of the files that a note names.
_NAMED = 3


class Names:
    """File names, in two arrays: a list of a million is pickled for seconds, for each worker."""

    def __init__(self, names: Sequence[bytes]):
        """Takes names in their order, as `os.fsencode` gives them."""
        self._ends = np.cumsum([len(name) for name in names], dtype=np.uint32)
        self._bytes = np.frombuffer(b"".join(names), np.uint8)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """A name, by its place 0..len-1."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


def subfolders(path: Path) -> list[str]:
    """Names of the folders in `path`, sorted; without hidden ones and what macOS adds."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and _seen(entry.name))


def listed(root: str, below: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Lists the files in the folder `below` of `root`, and in the folders in it.

    Whatever begins with a dot, and what macOS adds to archives, is not looked at.

    Args:
      root: folder that the result's paths start from.
      below: a folder in it.
      endings: what names of files may end in, in lower case; upper case is as good.

    Returns:
      Paths of the files that do, and of the others, in no order.

    Raises:
      InputError: a folder may not be read: its files must not be missing in silence.
      Lost: the file system does not answer.
    """
    try:
        return retrying(lambda: _files(root, below, endings))
    except OSError as error:
        kind = Lost if is_passing(error) else InputError
        raise kind(f"{error.filename} cannot be listed: {error.strerror}") from error


def answered(read: Callable[[], Result]) -> Result:
    """What `read` gives, tried again after a while where the file system has a passing problem.

    Raises:
      Lost: the problem did not pass.
    """
    try:
        return retrying(read)
    except Exception as error:
        if is_passing(error):
            raise Lost(str(error)) from error
        raise


def left_out_notes(what: str, left_out: Sequence[str], endings: tuple[str, ...]) -> tuple[str, ...]:
    """A sentence about files of `what` that do not have one of `endings`, if there are any."""
    if not left_out:
        return ()
    kinds = collections.Counter(os.path.splitext(name)[1].lower() or "none" for name in left_out)
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    named = ", ".join(sorted(left_out)[:_NAMED]) + (", ..." if len(left_out) > _NAMED else "")
    return (
        f"{what}: {len(left_out)} files left out, which do not end in {' '.join(endings)}"
        f" (endings: {counts}): {named}",
    )


def _seen(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _files(root: str, below: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    def fail(error: OSError) -> None:
        raise error

    found, left_out = list[str](), list[str]()
    for folder, deeper, files in os.walk(os.path.join(root, below), onerror=fail):
        deeper[:] = filter(_seen, deeper)
        inside = os.path.relpath(folder, root)
        for file in filter(_seen, files):
            path = os.path.join(inside, file)
            (found if file.lower().endswith(endings) else left_out).append(path)
    return found, left_out
