"""Checksums of checkpoints, and what happens to one that is damaged.

Beside its items a step has `checksums.txt`, which `sha256sum -c checksums.txt` reads too.
"""

import hashlib

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from convnext_jax import processes
from convnext_jax.errors import RunError

CHECKSUMS = "checksums.txt"
# Orbax enters the time into it when it makes the step visible; nothing is read from it.
_CHANGED_LATER = "_CHECKPOINT_METADATA"
# Beside the checkpoints; nothing is deleted that somebody may want to look at.
DAMAGED = "damaged"


def completed_steps(directory: epath.PathLike) -> list[int]:
    """The steps in a checkpoint directory, ascending; those being written do not count."""
    directory = epath.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory))


def write_checksums(directory: epath.Path, step: int) -> None:
    """Writes the checksums of a step whose files are written, before it becomes visible."""
    # Orbax renames a directory on a disk, and puts a mark into one in a bucket.
    places = [directory / str(step), *directory.glob(f"{step}.orbax-checkpoint-tmp*")]
    (folder,) = (place for place in places if place.exists())
    files = {name: path for name, path in _files(folder).items() if name != _CHANGED_LATER}
    lines = [f"{_sha256(path)}  {name}\n" for name, path in files.items()]
    (folder / CHECKSUMS).write_text("".join(lines))


def first_damage(folder: epath.Path) -> str | None:
    """What is wrong with a step, or None; compares its files with its checksums.

    Args:
      folder: of the step.
    """
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except UnicodeDecodeError:
        return f"{CHECKSUMS} has other contents than were written"
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not name or not path.is_file():
            return f"{name or CHECKSUMS} is missing or cut off"
        if _sha256(path) != digest:
            return f"{name} has other contents than were saved"
    return None if lines else f"{CHECKSUMS} is empty"


def set_damaged_aside(directory: epath.PathLike, *, stop: bool) -> list[str]:
    """Makes the newest step one that is whole, on all processes.

    Damaged steps newer than it are moved to `damaged/` beside the directory.

    Args:
      directory: of checkpoints.
      stop: raise instead.

    Returns:
      A sentence for each step that was moved; on process 0.

    Raises:
      RunError: a step is damaged, and `stop` is set or no other one is there.
    """
    moved: list[str] = []
    directory = epath.Path(directory)
    if processes.is_first():
        for step in reversed(completed_steps(directory)):
            damage = first_damage(directory / str(step))
            if damage is None:
                break
            sentence = f"the checkpoint of step {step} in {directory} is damaged: {damage}"
            if stop:
                raise RunError(f"{sentence}; `checkpoint.on_damage` (=stop) forbids to go on")
            aside = directory.parent / DAMAGED / str(step)
            if aside.exists():
                aside.rmtree()
            aside.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(aside)
            moved.append(f"{sentence}; it was moved to {aside}")
        if moved and not completed_steps(directory):
            raise RunError(f"{moved[-1]}, and there is no earlier one")
    # The others look at the directory only after this.
    processes.from_first(np.int32(len(moved)))
    return moved


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """All files of a folder, by their names relative to it, in order."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}/{name}": below for name, below in _files(path).items()}
        else:
            found[path.name] = path
    return found


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
