"""Whether all processes see the same files."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath

from convnext_jax import processes
from convnext_jax.checkpointing.steps import in_bucket
from convnext_jax.errors import InputError, RunError

# What another host wrote may be hidden by what a network file system remembers: NFS does up to a
# minute. A disk of this machine shows everything at once.
_PATIENCE_SECONDS = 75
_PATIENCE_ON_A_DISK_SECONDS = 2
_DISKS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "ramfs"}


def require_shared(name: str, directory: epath.Path) -> None:
    """Makes sure that all processes see the same directory: each must read what process 0 writes.

    Args:
      name: of the flag or key that chose it.
      directory: absolute; process 0 can write it.

    Raises:
      InputError: one does not; on all processes.
    """
    if jax.process_count() == 1:
        return
    place = f".shared-{uuid.uuid4().hex}"
    if processes.is_first():
        (directory / place).write_text("")
    place = processes.text_from_first(place)
    seen = appears(directory / place)
    answers = processes.texts_from_all(json.dumps([socket.gethostname(), seen]))
    if processes.is_first():
        (directory / place).unlink()
    hosts = [json.loads(answer) for answer in answers]
    for process, (host, seen) in enumerate(hosts):
        if not seen:
            raise InputError(
                f"`{name}` (={directory}) must be one place for all processes, and process"
                f" {process} on {host} does not see what process 0 on {hosts[0][0]} wrote there;"
                f" choose a shared file system or a bucket (gs://BUCKET/DIRECTORY)"
            )


def require_step(directory: epath.Path, step: int) -> None:
    """Waits until this process sees a step that process 0 sees.

    Raises:
      RunError: it does not come.
    """
    if not appears(directory / str(step)):
        raise RunError(
            f"the run goes on from step {step}, which process {jax.process_index()} on"
            f" {socket.gethostname()} does not see in {directory}"
        )


def appears(path: epath.Path) -> bool:
    """Whether a path that another process made is there, now or in a while."""
    patience = _PATIENCE_ON_A_DISK_SECONDS if _on_a_disk(path) else _PATIENCE_SECONDS
    return _within(patience, path.exists)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _on_a_disk(path: epath.Path) -> bool:
    """Whether a path lies on a file system of this machine's own; False where that is unknown."""
    if in_bucket(path):
        return False
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # no Linux
        return False
    real = os.path.realpath(path)
    # Of two at the same place the later one is seen.
    over = [
        (len(point), row, kind)
        for row, (_, point, kind, *_) in enumerate(mounts)
        if _below(real, point)
    ]
    return bool(over) and max(over)[2] in _DISKS


def _below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(f"{point}/")
