"""Commands in forks of a process that has imported what they need.

Importing takes two to three of the nine seconds of a short run, and a suite has hundreds of them.
What a fork runs is otherwise `python -m MODULE`: a process of its own, with arguments, variables,
output and a status of its own.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What is read after importing, so may differ from process to process.
READ_LATER = {
    *("XLA_FLAGS", "PYTEST_CURRENT_TEST"),
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
}
# Seconds between looks at whether a fork has ended.
_LOOK = 0.005


class Fork:
    """A command that runs; as `subprocess.Popen` with captured text."""

    def __init__(self, command: Sequence[str], folder: tempfile.TemporaryDirectory[str], pid: int):
        """Of `Forks.start`; `folder` has what it prints, and its status once it has ended."""
        self.args, self.pid, self.returncode = command, pid, None
        self._folder = folder

    def poll(self) -> int | None:
        """Its status, negative if a signal ended it; None as long as it runs."""
        if self.returncode is None and (text := self._text("status")):
            self.returncode = os.waitstatus_to_exitcode(int(text))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout, self._text(1), self._text(2))
            time.sleep(_LOOK)
        return self._text(1), self._text(2)

    def _text(self, name: object) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return (Path(self._folder.name) / str(name)).read_text()
        return ""


class Forks:
    """Runs `python -m MODULE ARGUMENTS` in an environment, `READ_LATER` aside."""

    def __init__(self, env: Mapping[str, str], root: Path):
        """Starts the process that is forked; `root` is its working directory."""
        self._env = self._read_early(env)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).absolute())],
            env=dict(env),
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @staticmethod
    def _read_early(env: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in env.items() if name not in READ_LATER}

    def can_run(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a fork is what the command would be."""
        module = list(command[:2]) == [sys.executable, "-m"]
        return module and self._read_early(env) == self._env

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> Fork:
        """Starts a command."""
        folder = tempfile.TemporaryDirectory()
        late = {name: value for name, value in env.items() if name in READ_LATER}
        argv = [str(part) for part in command[2:]]
        assert self._process.stdin is not None and self._process.stdout is not None
        request = json.dumps({"argv": argv, "env": late, "folder": folder.name})
        self._process.stdin.write(request.encode() + b"\n")
        self._process.stdin.flush()
        return Fork(command, folder, int(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process that is forked."""
        self._process.communicate()


def serve() -> dict[str, Any]:
    """Forks for every request, and keeps the forks' statuses; returns the request in the fork."""
    gc.freeze()
    received = b""
    folders: dict[int, Path] = {}
    while True:
        if select.select([0], [], [], _LOOK if folders else None)[0]:
            if not (found := os.read(0, 2**16)):
                sys.exit(0)
            received += found
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            request = json.loads(line)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # JAX warns of forks; no device is in use yet
                number = os.fork()
            if number == 0:
                return request
            folders[number] = Path(request["folder"])
            os.write(1, b"%d\n" % number)
        for number in list(folders):
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                folder = folders.pop(number)
                with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                    (folder / "part").write_text(str(status))
                    (folder / "part").rename(folder / "status")


def become(request: dict[str, Any]) -> None:
    """Runs the module in this process."""
    folder = request["folder"]
    for number, file in enumerate(("/dev/null", f"{folder}/1", f"{folder}/2")):
        flags = os.O_WRONLY | os.O_CREAT if number else os.O_RDONLY
        opened = os.open(file, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    for name in READ_LATER:
        os.environ.pop(name, None)
    os.environ.update(request["env"])
    module, *arguments = request["argv"]
    sys.path[0] = os.getcwd()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    import matplotlib.figure  # noqa: F401
    from absl import app  # noqa: F401
    from ml_collections import config_flags  # noqa: F401

    import convnext_jax.checkpointing.shared
    import convnext_jax.report.run
    import convnext_jax.training.loop  # noqa: F401

    become(serve())
