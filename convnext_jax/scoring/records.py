"""What was measured so far, in a file that grows with each part, so that nothing is done twice."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convnext_jax import processes
from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.errors import InputError

_FORMAT = 1

# What a result is of, and the result; both as JSON has them.
What = Mapping[str, Any]


class Records:
    """Results by what they are of, in a JSON file; only process 0 reads and writes it.

    Attributes:
      path: the file.
    """

    def __init__(self, path: Path, *, again: bool = False):
        """Reads what is there.

        Args:
          path: the file; need not be there. Other commands may write it, too.
          again: do not find what was measured before.

        Raises:
          InputError: the file is there and has no such records, or cannot be written.
        """
        self.path = path
        self._records: list[dict[str, Any]] = []
        if processes.is_first():
            found = _read(path)
            _require_writable(path)
            self._records = [] if again else found

    def find(self, what: What) -> dict[str, Any] | None:
        """The newest results of something, or None; what process 0 finds, on all processes.

        Args:
          what: of which all values must be equal; that of other processes is not looked at.
        """
        found = next((r["results"] for r in reversed(self._records) if r["what"] == what), None)
        return json.loads(processes.text_from_first(json.dumps(found)))

    def all(self) -> list[tuple[What, dict[str, Any]]]:
        """All that process 0 has, the oldest first; nothing on the others."""
        return [(record["what"], record["results"]) for record in self._records]

    def add(self, what: What, results: dict[str, Any]) -> None:
        """Keeps results; they are on the disk when this returns.

        Raises:
          InputError: the file cannot be written.
        """
        if not processes.is_first():
            return
        record = {"what": dict(what), "results": results}
        self._records.append(record)
        try:
            with _locked(self.path.parent):
                found = {"format": _FORMAT, "records": [*_read(self.path), record]}
                write_at_once(self.path, json.dumps(found, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other commands that want the same lock waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}, and not {_FORMAT}")
        return [{key: record[key] for key in ("what", "results")} for record in found["records"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} must be a file of results of this command: {error}; move it away, or choose"
            " another one"
        ) from error


def _require_writable(path: Path) -> None:
    """Raises InputError if results could not be kept, before they are computed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error}") from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} must be a file that can be written")
