"""The steps in a directory of checkpoints: which are complete, how they scored, how one goes away.

A step is a folder named by its number. On a disk it gets that name when all of it is written; in a
bucket, where nothing can be renamed at once, a last file says so.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from convnext_jax.retry import retrying

# The items of a step that are trees of arrays, and the one that is JSON.
ARRAYS = ("params", "batch_stats", "ema", "ema_batch_stats", "optimizer")
DESCRIPTION = "description"
# Results of the evaluation after a step, beside its arrays: a record as `metrics.jsonl` has them.
EVALUATION = "evaluation.json"
# Where Orbax stored them for earlier versions of this project.
_EARLIER_EVALUATION = "metrics/metrics"
# Orbax's mark of a complete step in a bucket, and the mark in the name of an incomplete one.
_COMPLETE = "commit_success.txt"
_INCOMPLETE = ".orbax-checkpoint-tmp"


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path names objects of a store rather than files."""
    return "://" in os.fspath(path)


def completed_steps(directory: epath.PathLike) -> list[int]:
    """The steps in a checkpoint directory, ascending; those being written do not count."""
    directory = epath.Path(directory)
    if not directory.is_dir():
        return []
    folders = [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(int(folder.name) for folder in folders if is_complete(folder))


def is_complete(folder: epath.Path) -> bool:
    """Whether a folder named by a step's number holds all of it."""
    return (folder / _COMPLETE).exists() if in_bucket(folder) else folder.is_dir()


def read_evaluation(directory: epath.PathLike, step: int) -> dict[str, float] | None:
    """The results that were added to a complete step, or None."""
    for name in (EVALUATION, _EARLIER_EVALUATION):
        try:
            return json.loads((epath.Path(directory) / str(step) / name).read_text())
        except FileNotFoundError:
            pass
        except ValueError:  # cut off by a machine that went down: it is evaluated again
            return None
    return None


def write_evaluation(directory: epath.Path, step: int, record: Mapping[str, float]) -> None:
    """Adds results to a complete step."""
    write_at_once(directory / str(step) / EVALUATION, json.dumps(dict(record)) + "\n")


def write_at_once(path: epath.Path | Path, content: str | bytes) -> None:
    """Writes a small file so that at every moment what was there before is there, or all of it."""
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):  # an object appears when it is whole
        retrying(lambda: path.write_bytes(data))
        return
    temporary = path.with_name(path.name + ".tmp")

    def write() -> None:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Else, where the machine goes down, the new name may come with nothing behind it.
            os.fsync(file.fileno())

    try:
        retrying(write)
        temporary.replace(os.fspath(path))
    finally:
        temporary.unlink(missing_ok=True)


def kept_steps(scores: Mapping[int, float | None], keep_last: int) -> set[int]:
    """Which of the steps are worth their space.

    Args:
      scores: of all complete steps; None: not evaluated.
      keep_last: how many of the newest.

    Returns:
      Those, and the one with the highest score; of equal ones the latest.
    """
    best = max(((score, step) for step, score in scores.items() if score is not None), default=None)
    return set(sorted(scores)[-keep_last:]) | (set() if best is None else {best[1]})


def delete_step(directory: epath.Path, step: int) -> None:
    """Deletes a step, which at no moment looks complete and lacks something."""
    folder = directory / str(step)
    if in_bucket(folder):
        (folder / _COMPLETE).unlink(missing_ok=True)
        _delete(folder)
    else:
        leaving = directory / f"{step}{_INCOMPLETE}-deleted"
        folder.rename(leaving)
        _delete(leaving)


def delete_incomplete(directory: epath.Path) -> None:
    """Deletes what saves and deletions that were killed have left."""
    for path in directory.iterdir():
        unmarked = in_bucket(path) and path.name.isdigit() and not is_complete(path)
        if _INCOMPLETE in path.name or unmarked:
            # Where the run that fills it still lives, some of it may come or go meanwhile; what is
            # left is in nobody's way.
            with contextlib.suppress(OSError):
                _delete(path)


def _delete(folder: epath.Path) -> None:
    # Not by Orbax, which wants a client library of Google's for what lies in a bucket.
    for path in files_below(folder).values():
        path.unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def files_below(folder: epath.Path) -> dict[str, Any]:
    """All files of a folder, by their names relative to it, in order."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}/{name}": below for name, below in files_below(path).items()}
        else:
            found[path.name] = path
    return found
