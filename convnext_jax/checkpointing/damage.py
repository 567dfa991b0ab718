"""Checksums of checkpoints, and what happens to one that is damaged.

Beside its items a step has `checksums.txt`, which `sha256sum -c checksums.txt` reads too; each
further process that wrote a part of it adds a `checksums.N.txt` of that part. They are written once
the step is complete, in the background, each process reading what it wrote itself.

In a bucket the files are `sizes.txt` and `sizes.N.txt`, with bytes in place of checksums. The store
keeps checksums of its objects and never shows a part of one; reading everything back over the
network after each save would find nothing that it does not.
"""

import errno
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable

import jax
from etils import epath

from convnext_jax import processes
from convnext_jax.checkpointing.steps import (
    ARRAYS,
    DESCRIPTION,
    EVALUATION,
    completed_steps,
    files_below,
    in_bucket,
    write_at_once,
)
from convnext_jax.errors import Lost, RunError
from convnext_jax.retry import is_passing, retrying

# In the directory of checkpoints; nothing is deleted that somebody may want to look at.
DAMAGED = "damaged"
_LISTS = re.compile(r"(checksums|sizes)(\.\d+)?\.txt")
# Orbax enters times into the first, and marks a step as complete with the second.
_UNLISTED = {"_CHECKPOINT_METADATA", "commit_success.txt", EVALUATION, f"{EVALUATION}.tmp"}
# The folder of an item in which Orbax's process N writes its part of the arrays.
_PART = re.compile(r"(?:^|/)ocdbt\.process_(\d+)/")


class Stopped(Exception):
    """There is no time to finish."""


def write_checksums(folder: epath.Path, stop: threading.Event) -> None:
    """Writes the checksums of the part of a complete step that this process wrote.

    Args:
      folder: of the step.
      stop: when it is set, nothing is written.

    Raises:
      Stopped: because of that.
    """
    process = jax.process_index()
    lines = [
        f"{_fingerprint(path, stop)}  {name}\n"
        for name, path in _listable(folder).items()
        if _writer(name) == process
    ]
    # Not an empty one: that would be damage.
    if lines:
        kind = "sizes" if in_bucket(folder) else "checksums"
        suffix = f".{process}" if process else ""
        write_at_once(folder / f"{kind}{suffix}.txt", "".join(lines))


def _listable(folder: epath.Path) -> dict[str, epath.Path]:
    files = files_below(folder)
    return {
        name: path
        for name, path in files.items()
        if name not in _UNLISTED and not _LISTS.match(name)
    }


def _writer(name: str) -> int:
    part = _PART.search(name)
    return int(part[1]) if part else 0


def _fingerprint(path: epath.Path, stop: threading.Event | None = None) -> str:
    """What a list says of a file: its size in a bucket, its SHA-256 elsewhere."""
    if in_bucket(path):
        return str(path.stat().length)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            if stop is not None and stop.is_set():
                raise Stopped
            digest.update(chunk)
    return digest.hexdigest()


def read_lists(folder: epath.Path) -> tuple[dict[str, str], str | None]:
    """Reads the lists of a step.

    Returns:
      What each file must be, by name; and what is wrong with the lists themselves, or None.
    """
    listed: dict[str, str] = {}
    for path in sorted(path for path in folder.iterdir() if _LISTS.fullmatch(path.name)):
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            return listed, f"{path.name} has other contents than were written"
        if not lines:
            return listed, f"{path.name} is empty"
        for line in lines:
            expected, _, name = line.partition("  ")
            if not name:
                return listed, f"{path.name} is missing or cut off"
            listed[name] = expected
    return listed, None


def _damage(folder: epath.Path, name: str, expected: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing or cut off"
    if _fingerprint(path) != expected:
        return f"{name} has other contents than were saved"
    return None


def first_damage(folder: epath.Path) -> tuple[str | None, str | None]:
    """Compares a step's files with its lists, all processes together, each some of them.

    Args:
      folder: of the step.

    Returns:
      What is wrong with the step, or None; and what could not be verified, or None. The same on
      all processes.
    """
    found = ""
    if processes.is_first():
        listed, wrong = read_lists(folder)
        unlisted = [name for name in _listable(folder) if name not in listed]
        found = json.dumps([listed, wrong, unlisted])
    listed, wrong, unlisted = json.loads(processes.text_from_first(found))
    count, index = jax.process_count(), jax.process_index()
    mine = list(listed.items())[index::count]
    suspect = next((name for name, expected in mine if _damage(folder, name, expected)), "")
    suspects = [name for name in processes.texts_from_all(suspect) if name]
    # A process whose view of a network file system is old may miss what is there.
    damages = (_damage(folder, name, listed[name]) for name in suspects)
    if processes.is_first():
        wrong = wrong or next((damage for damage in damages if damage), None)
    wrong = json.loads(processes.text_from_first(json.dumps(wrong)))
    if not unlisted:
        return wrong, None
    return wrong, (
        f"{len(unlisted)} of {len(unlisted) + len(listed)} files have no checksums, as the run that"
        f" wrote them ended before it had computed them"
    )


def unreadable(folder: epath.Path) -> str | None:
    """Reads each array of a step once, all processes together, each some of them.

    For a step without checksums; no process waits for another meanwhile, as in restoring, where
    one that fails would leave the others waiting.

    Args:
      folder: of the step.

    Returns:
      Why one cannot be read, or None; the same on all processes.

    Raises:
      Lost: the file system does not answer, or not to this process.
      RunError: this process may not read the step.
    """
    mine = _first_unreadable(folder, jax.process_index(), jax.process_count())
    if not any(processes.texts_from_all(mine)):
        return None
    # A process whose view of a network file system is old may miss what is there: one decides.
    found = processes.text_from_first(_first_unreadable(folder) if processes.is_first() else "")
    if not found:
        raise Lost(f"{folder} cannot be read by a process, and can by process 0")
    return found


def _first_unreadable(folder: epath.Path, turn: int = 0, of: int = 1) -> str:
    """Why an array cannot be read, of each `of` of them the one whose turn it is; "": none."""
    try:
        for item, name in retrying(lambda: _arrays(folder))[turn::of]:
            retrying(functools.partial(_read, folder / item, name))
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not _is_damage(error):
            kind = Lost if is_passing(error) else RunError
            raise kind(f"{folder} cannot be read: {said}") from error
        return said
    return ""


def _is_damage(error: Exception) -> bool:
    """Whether an error says that a file is not as it was written, and not that reading failed."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return True
    lasting = isinstance(error, ValueError | KeyError | TypeError | AttributeError)
    return lasting and not is_passing(error) and os.strerror(errno.EACCES) not in str(error)


def _arrays(folder: epath.Path) -> list[tuple[str, str]]:
    """The items of a step and the names of their arrays, as Orbax wrote them down."""
    found = []
    for item in json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]:
        if item == DESCRIPTION:
            json.loads((folder / item / "metadata").read_text())
        elif item in ARRAYS:
            leaves = json.loads((folder / item / "_METADATA").read_text())["tree_metadata"]
            found += [
                (item, ".".join(str(key["key"]) for key in leaf["key_metadata"]))
                for leaf in leaves.values()
                if leaf["value_metadata"]["value_type"] == "jax.Array"
            ]
    return found


def _read(item: epath.Path, name: str) -> None:
    import tensorstore  # as Orbax does, which has loaded it by now

    # Not a URL for what is on a disk, in which some characters of its name would mean something.
    place = os.fspath(item)
    base = f"{place}/" if in_bucket(item) else {"driver": "file", "path": f"{place}/"}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "fill_missing_data_reads": False,
    }
    tensorstore.open(spec).result().read().result()


def set_damaged_aside(directory: epath.PathLike, *, stop: bool) -> list[str]:
    """Makes the newest step one that is whole, on all processes.

    Damaged steps newer than it are moved to `damaged/` in the directory.

    Args:
      directory: of checkpoints.
      stop: raise instead.

    Returns:
      A sentence for each step that was moved, and for one that could not be verified; the same on
      all processes.

    Raises:
      RunError: a step is damaged, and `stop` is set or no other one is there.
    """
    said: list[str] = []
    moved = ""
    directory = epath.Path(directory)
    steps = json.loads(processes.text_from_first(json.dumps(_if_first(completed_steps, directory))))
    for step in reversed(steps):
        damage, unverified = first_damage(directory / str(step))
        name = f"the checkpoint of step {step} in {directory}"
        if damage is None and unverified is not None:
            damage = unreadable(directory / str(step))
            if damage is None:
                said.append(f"{name} is used, but not verified: {unverified}")
        if damage is None:
            return said
        moved = f"{name} is damaged: {damage}"
        if stop:
            raise RunError(f"{moved}; `checkpoint.on_damage` (=stop) forbids to go on")
        aside = processes.text_from_first(str(_if_first(_set_aside, directory, step)))
        moved += f"; it was moved to {aside}"
        said.append(moved)
    if moved:
        raise RunError(f"{moved}, and there is no earlier one")
    return said


def _if_first(action: Callable, *arguments: object) -> object:
    return action(*arguments) if processes.is_first() else None


def _set_aside(directory: epath.Path, step: int) -> epath.Path:
    """Moves a step to where nothing is yet; returns where."""
    aside = directory / DAMAGED / str(step)
    number = 1
    while aside.exists():
        number += 1
        aside = directory / DAMAGED / f"{step}.{number}"
    aside.parent.mkdir(exist_ok=True)
    (directory / str(step)).rename(aside)
    return aside
