"""What was measured so far, in a file that grows with each part, so that nothing is done twice."""

import json
import os
from pathlib import Path
from typing import Any

from convnext_jax import processes
from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.errors import InputError

_FORMAT = 1


class Records:
    """Results by what they are of, in a JSON file; only process 0 reads and writes it."""

    def __init__(self, path: Path):
        """Reads what is there, for all processes.

        Raises:
          InputError: the file is there and has no such records, or cannot be written.
        """
        self.path = path
        text = "[]"
        if processes.is_first():
            text = json.dumps(_read(path))
            _require_writable(path)
        self._records: list[dict[str, Any]] = json.loads(processes.text_from_first(text))

    def find(self, what: dict[str, Any]) -> dict[str, Any] | None:
        """The results of what was measured, or None.

        Args:
          what: JSON's values by name; all must be equal.
        """
        for record in reversed(self._records):
            if record["what"] == what:
                return record["results"]
        return None

    def add(self, what: dict[str, Any], results: dict[str, Any]) -> None:
        """Keeps results; they are on the disk when this returns.

        Raises:
          InputError: the file cannot be written.
        """
        record = {"what": what, "results": results}
        self._records.append(record)
        if processes.is_first():
            try:
                # Read again: another command may write its own results there.
                found = {"format": _FORMAT, "records": [*_read(self.path), record]}
                write_at_once(self.path, json.dumps(found, indent=1) + "\n")
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error}") from error


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
