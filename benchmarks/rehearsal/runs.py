"""Runs of the real commands, and what is seen of them from outside: processes, memory, files."""

import contextlib
import dataclasses
import os
import resource
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.readme import ROOT

# Every process of a run inherits it, whoever becomes its parent.
_MARK = "CONVNEXT_JAX_REHEARSAL"
# As little memory as may be left to this machine's other programs before a run is ended.
_SPARE_BYTES = 1e9


class Broken(Exception):
    """A run did something else than it should; the message says what."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """A process at a moment.

    Attributes:
      pid: of the system.
      role: `main`, `worker` (spawned by Python's multiprocessing) or `other`.
      pss: bytes of memory, what it shares divided by those it shares it with.
      rss: bytes of memory, what it shares included.
      files: open file descriptors.
    """

    pid: int
    role: str
    pss: int
    rss: int
    files: int


class Run:
    """One command, as one process or several that meet. Use it as a context manager: at its end
    nothing is left of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        env: dict[str, str],
        *,
        count: int = 1,
        files: int | None = 1024,
    ) -> None:
        """Starts it.

        Args:
          command: what to run, from the repository's root.
          folder: created; gets what the processes print.
          env: added to this process's environment.
          count: number of processes.
          files: soft limit of open files, or None for this process's own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex
        self._marked = f"{_MARK}={mark}".encode()
        self._outputs = [(folder / f"out{i}.txt", folder / f"err{i}.txt") for i in range(count)]
        address = f"localhost:{_free_port()}"
        self.began = time.perf_counter()
        self.processes: list[subprocess.Popen] = []
        for index, (out, err) in enumerate(self._outputs):
            meeting = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            with out.open("wb") as stdout, err.open("wb") as stderr:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=os.environ | env | {_MARK: mark} | (meeting if count > 1 else {}),
                        stdin=subprocess.DEVNULL,
                        stdout=stdout,
                        stderr=stderr,
                        start_new_session=True,
                        preexec_fn=None if files is None else lambda: _limit_files(files),
                    )
                )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.began

    def printed(self, index: int = 0) -> str:
        """What a process printed, stdout before stderr."""
        return "".join(path.read_text(errors="replace") for path in self._outputs[index])

    def wait_for(self, condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> None:
        """Waits until `condition()` holds, which is asked every `pause` seconds.

        Raises:
          Broken: a process ended before, it took too long, or memory ran out.
        """
        deadline = time.perf_counter() + seconds
        while not condition():
            ended = [p.returncode for p in self.processes if p.poll() is not None]
            if ended and not condition():
                raise Broken(f"ended with {ended[0]}: {self.last_words()}")
            if time.perf_counter() > deadline:
                raise Broken(f"took more than {seconds:.0f} s: {self.last_words()}")
            if available_memory() < _SPARE_BYTES:
                raise Broken(f"took all memory: {_describe(self.seen())}")
            time.sleep(pause)

    def wait_until_printed(self, words: str, seconds: float) -> None:
        """Waits until process 0 has printed `words`; raises as `wait_for`."""
        self.wait_for(lambda: words in self.printed(), seconds)

    def wait(self, seconds: float) -> list[int]:
        """Waits until all processes have ended; returns their statuses.

        Raises:
          Broken: they have not after so long, or memory ran out.
        """
        deadline = time.perf_counter() + seconds
        while any(process.poll() is None for process in self.processes):
            if time.perf_counter() > deadline:
                raise Broken(f"had not ended after {seconds:.0f} s: {self.last_words()}")
            if available_memory() < _SPARE_BYTES:
                raise Broken(f"took all memory: {_describe(self.seen())}")
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def last_words(self) -> str:
        """The last line that says something, of the first process that said one."""
        for _, err in self._outputs:
            lines = [line for line in err.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error: ")] or lines
            if errors:
                return errors[-1][:300]
        return "it said nothing"

    def seen(self) -> list[Seen]:
        """All its processes that live, wherever they are now."""
        mains = {process.pid for process in self.processes if process.poll() is None}
        return [seen for pid in self._pids() if (seen := _look_at(pid, mains)) is not None]

    def rss(self) -> dict[str, float]:
        """Bytes of memory of process 0, and the mean of the workers; cheap enough to sample."""
        main = self.processes[0].pid
        sizes = {pid: size for pid in self._pids() if (size := _rss(pid)) and _is_worker(pid)}
        result: dict[str, float] = {"main": _rss(main)}
        return result | ({"worker": sum(sizes.values()) / len(sizes)} if sizes else {})

    def sample_rss(
        self, step: Callable[[], int], last: int, seconds: float, pause: float
    ) -> list[dict[str, Any]]:
        """Samples `rss` until a step.

        Args:
          step: says which one was last.
          last: where to end.
          seconds: how long it may take.
          pause: seconds between samples.

        Returns:
          Dictionaries with `step` and what `rss` gives.

        Raises:
          Broken: as `wait_for`.
        """
        samples = []
        due = time.perf_counter()

        def done() -> bool:
            nonlocal due
            now = step()
            if time.perf_counter() >= due:
                due = time.perf_counter() + pause
                samples.append({"step": now} | self.rss())
            return now >= last

        self.wait_for(done, seconds, min(pause, 0.05))
        return samples

    def left_behind(self, seconds: float = 5) -> int:
        """How many processes live on, some seconds after the last of `processes` has ended."""
        deadline = time.perf_counter() + seconds
        while (left := self._pids()) and time.perf_counter() < deadline:
            time.sleep(0.1)
        return len(left)

    def _pids(self) -> list[int]:
        return [pid for pid in _all_pids() if _has_mark(pid, self._marked)]

    def __enter__(self) -> "Run":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills what is left."""
        while pids := self._pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.processes:
                process.wait()
            time.sleep(0.05)


def available_memory() -> int:
    """Bytes that programs can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _describe(processes: list[Seen]) -> str:
    memory = sum(process.pss for process in processes)
    return f"{len(processes)} processes have {memory / 1e9:.1f} GB"


def _limit_files(soft: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _has_mark(pid: int, marked: bytes) -> bool:
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # another user's, or gone meanwhile
        return False
    return marked in found and state not in "ZX"


def _is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _look_at(pid: int, mains: set[int]) -> Seen | None:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    (pss,) = (int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    role = "main" if pid in mains else "worker" if _is_worker(pid) else "other"
    return Seen(pid, role, pss, _rss(pid), files)
