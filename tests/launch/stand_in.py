"""Stands in for convnext_jax.main where a test is about what a launch script does around it.

It appends a record of its arguments and environment to `$STAND_IN/records.jsonl`, and does what
`$STAND_IN/plan.json` says: a list of attempts, each a list with an action per process. An action
is the exit status, "term" (wait for SIGTERM, end with 75), "stuck" (ignore SIGTERM), "cut" (kill
the parent and itself), "killed" (itself), "orphans" (with two children that ignore SIGTERM), or
"join" (meet the other processes as the program does, and end with 0).
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])
KEPT = ("JAX_", "SLURM_", "OMPI_")


def process_index():
    for name in ("JAX_PROCESS_ID", "SLURM_PROCID", "FAKE_WORKER"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def record(index, **facts):
    """Appends a record; returns how many earlier attempts of this process there were."""
    environment = {k: v for k, v in os.environ.items() if k.startswith(KEPT)}
    new = {"process": index, "arguments": sys.argv[1:], "environment": environment, **facts}
    with open(FOLDER / "records.jsonl", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        attempt = sum(json.loads(line)["process"] == index for line in file)
        file.write(json.dumps(new) + "\n")
    return attempt


def wait_until_all_began(attempt, count):
    """Until every other process of this attempt has been recorded, and has had time to end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(FOLDER / "records.jsonl") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            begun = [json.loads(line)["process"] for line in file]
        if all(begun.count(index) > attempt for index in range(count)):
            time.sleep(0.2)
            return
        time.sleep(0.02)


def join(index):
    import site

    site.main()  # installed packages, without which the rest starts in half the time
    import jax
    from jax.experimental import multihost_utils

    from convnext_jax import processes

    processes.join()
    seen = multihost_utils.process_allgather(jax.numpy.asarray([jax.process_index()]))
    facts = {"index": jax.process_index(), "seen": seen.ravel().tolist()}
    (FOLDER / f"joined{index}.json").write_text(json.dumps(facts))
    jax.distributed.shutdown()
    return 0


def main():
    index = process_index()
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    attempt = record(index)
    print(f"process {index}, attempt {attempt}", flush=True)
    actions = json.loads((FOLDER / "plan.json").read_text())[attempt]
    action = actions[index]
    if isinstance(action, int) and action not in (0, 75, 76):
        # It makes the script end the others, which then would not do what is planned.
        wait_until_all_began(attempt, len(actions))
    if action == "join":
        return join(index)
    if action == "cut":
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "orphans":
        command = ["bash", "-c", "trap '' TERM; sleep 60 & sleep 60"]
        children = [subprocess.Popen(command) for _ in range(2)]
        (FOLDER / "orphans").write_text(" ".join(str(child.pid) for child in children))
    if action in ("killed", "orphans"):
        os.kill(os.getpid(), signal.SIGKILL)
    if action in ("term", "stuck"):
        end = time.monotonic() + 60
        while time.monotonic() < end and (action == "stuck" or not terminated):
            time.sleep(0.02)
        return 75 if terminated else 99
    return action


if __name__ == "__main__":
    # At once: while an interpreter ends, it has no handlers, and a SIGTERM would change its status.
    os._exit(main())
