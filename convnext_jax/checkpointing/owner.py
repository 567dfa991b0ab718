"""Which run writes in a directory of checkpoints: the one that opened it last.

A run cannot know whether the one before it still lives, on another machine or behind a network that
came back: so the new one goes on, and the old one finds out before it writes again.
"""

import datetime
import json
import os
import socket
import uuid

from etils import epath

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.errors import RunError
from convnext_jax.retry import retrying

_FILE = "owner.json"


def take(directory: epath.Path) -> str:
    """Makes this run the owner of a directory; returns what `require` wants."""
    run = uuid.uuid4().hex
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    owner = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    write_at_once(directory / _FILE, json.dumps(owner) + "\n")
    return run


def require(directory: epath.Path, run: str) -> None:
    """Makes sure that a run still owns a directory.

    Raises:
      RunError: another one does.
      OSError: the file system does not answer.
    """
    try:
        owner = json.loads(retrying((directory / _FILE).read_text))
        other, who = owner["run"], f"process {owner['pid']} on {owner['host']}"
        since = owner["since"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no run tidied up there
        return
    if other != run:
        raise RunError(
            f"another run has begun in {directory}, {who} since {since}; this one leaves it to"
            " that: two would replace each other's steps"
        )
