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
READ_LATER = {"XLA_FLAGS", "PYTEST_CURRENT_TEST"}


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
        self._answers = b""

    @staticmethod
    def _read_early(env: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in env.items() if name not in READ_LATER}

    def can_run(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a fork is what the command would be."""
        module = list(command[:2]) == [sys.executable, "-m"]
        return module and self._read_early(env) == self._env

    def run(
        self, command: Sequence[str], env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with captured text."""
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("out", "err")]
            late = {name: value for name, value in env.items() if name in READ_LATER}
            argv = [str(part) for part in command[2:]]
            request = json.dumps({"argv": argv, "env": late, "files": files})
            assert self._process.stdin is not None
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
            deadline = time.monotonic() + timeout
            number = self._answer(deadline)
            try:
                status = os.waitstatus_to_exitcode(self._answer(deadline))
            except TimeoutError as error:
                os.kill(number, signal.SIGKILL)
                self._answer(time.monotonic() + 10)
                raise subprocess.TimeoutExpired(command, timeout, *map(_text, files)) from error
            return subprocess.CompletedProcess(command, status, *map(_text, files))

    def _answer(self, deadline: float) -> int:
        assert self._process.stdout is not None
        while b"\n" not in self._answers:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise TimeoutError
            found = os.read(self._process.stdout.fileno(), 100)
            assert found, "the process that is forked has ended"
            self._answers += found
        answer, _, self._answers = self._answers.partition(b"\n")
        return int(answer)

    def close(self) -> None:
        """Ends the process that is forked."""
        self._process.communicate()


def _text(file: str) -> Any:
    with contextlib.suppress(FileNotFoundError):
        return Path(file).read_text()
    return ""


def serve() -> dict[str, Any]:
    """Forks for every request; returns it in the fork."""
    gc.freeze()
    for line in sys.stdin.buffer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of forks; no device is in use yet
            number = os.fork()
        if number == 0:
            return json.loads(line)
        os.write(1, b"%d\n" % number)
        os.write(1, b"%d\n" % os.waitpid(number, 0)[1])
    sys.exit(0)


def become(request: dict[str, Any]) -> None:
    """Runs the module in this process."""
    for number, file in enumerate(("/dev/null", *request["files"])):
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
