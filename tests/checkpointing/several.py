"""Run as `several.py INDEX COUNT ADDRESS FOLDER`: what several processes do to checkpoints.

Each prints one line of JSON: what it saw.
"""

import errno
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from etils import epath

from convnext_jax import processes, sharding
from convnext_jax.checkpointing import damage, manager, shared
from convnext_jax.errors import InputError, Lost, RunError


def sentence(action, *arguments):
    """What an action says when it refuses, and after how many seconds."""
    began = time.monotonic()
    try:
        action(*arguments)
    except (InputError, Lost, RunError) as error:
        return str(error), time.monotonic() - began
    return "", time.monotonic() - began


def main(index, count, address, folder):
    jax.distributed.initialize(address, count, index)
    mesh = sharding.create_mesh(fsdp=count)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    values = np.arange(4096 * 8.0, dtype=np.float32).reshape(4096, 8)
    kernel = jax.make_array_from_callback(values.shape, split, lambda place: values[place])
    found = {}

    read = []
    fingerprint = damage._fingerprint
    damage._fingerprint = lambda path, *rest: read.append(path) or fingerprint(path, *rest)
    directory = epath.Path(folder) / "shared"
    checkpoints = manager.Checkpoints(directory, best_metric="top1")
    checkpoints.save(1, {"params": {"kernel": kernel}}, {})
    checkpoints.add_evaluation(1, {"top1": 0.5})
    checkpoints.close()
    found["hashed"] = [str(path.relative_to(directory / "1")) for path in read]
    processes.texts_from_all("all lists are written")

    read.clear()
    damage.set_damaged_aside(directory, stop=True)
    found["verified"] = [str(path.relative_to(directory / "1")) for path in read]
    found["shared"] = sentence(shared.require_shared, "checkpoint.dir", directory)

    # What a process sees that looks at another place, or at an old state of the same one.
    own = epath.Path(folder) / "own" / str(index)
    found["not shared"] = sentence(shared.require_shared, "checkpoint.dir", own)
    for step in (8, 16) if index == 0 else (8, 24):
        (own / str(step)).mkdir()
    found["not seen"] = sentence(lambda: manager.Checkpoints(own, best_metric="top1"))
    for step in (8, 16, 24):
        (own / str(step)).mkdir(exist_ok=True) if index else None
    found["agreed"] = manager.Checkpoints(own, best_metric="top1").latest_step()

    # The last process meets a passing error, and the others would wait in the collective save.
    if index == count - 1:
        calls = []

        def save(*_, **__):
            calls.append(1)
            raise OSError(errno.EIO, "passing")

        checkpoints = manager.Checkpoints.__new__(manager.Checkpoints)
        checkpoints.__dict__.update(_directory=directory, _steps={}, _writes=[], _failed=False)
        checkpoints._checkpointer = type("Collective", (), {"save": save})()
        found["failed"] = sentence(checkpoints.save, 2, {"params": {"kernel": kernel}}, {})
        found["calls"] = len(calls)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
