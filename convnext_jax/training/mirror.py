"""A copy of a run's records beside its checkpoints, for when the machine is lost and they are not.

Only where the checkpoints lie outside the workdir, such as in a bucket.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from etils import epath

from convnext_jax.checkpointing.steps import files_below, in_bucket, write_at_once
from convnext_jax.training.reporting import CONFIG_FILE, METRICS_FILE, TENSORBOARD, parse_records
from convnext_jax.training.summary import CURVES_FILE, SUMMARY_FILE

# In the directory of checkpoints: two runs never share that.
RECORDS = "records"
_FILES = (METRICS_FILE, CONFIG_FILE, SUMMARY_FILE, CURVES_FILE)


class Mirror:
    """Copies records from the workdir to the checkpoints in the background, and back at a start."""

    def __init__(
        self,
        workdir: Path,
        directory: epath.Path,
        *,
        active: bool = True,
        notice: Callable[[str], None] = print,
    ) -> None:
        """Copies nothing yet.

        Args:
          workdir: of the run, absolute.
          directory: of its checkpoints, absolute.
          active: whether this process keeps the records.
          notice: told once that copying fails, which harms nothing else.
        """
        elsewhere = in_bucket(directory) or not Path(directory).is_relative_to(workdir)
        self._active = active and elsewhere
        self._workdir = workdir
        self._place = directory / RECORDS
        self._notice = notice
        self._copied: dict[str, tuple[int, int]] = {}
        self._failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._last: Future[None] | None = None

    def fetch(self) -> None:
        """Takes the records from beside the checkpoints where they reach further than here."""
        if not self._active:
            return
        try:
            self._fetch()
        except Exception as error:
            self._notice(f"the records in {self._place} cannot be read: {error}")

    def _fetch(self) -> None:
        if not (self._place / METRICS_FILE).exists():
            return
        theirs = _last_step((self._place / METRICS_FILE).read_text())
        here = self._workdir / METRICS_FILE
        if here.exists() and _last_step(here.read_text(encoding="utf-8")) >= theirs:
            return
        found = files_below(self._place)
        # The one that is looked at here comes last: until then another start would fetch all again.
        for name in sorted(found, key=lambda name: name == METRICS_FILE):
            (self._workdir / name).parent.mkdir(parents=True, exist_ok=True)
            write_at_once(self._workdir / name, found[name].read_bytes())

    def push(self) -> None:
        """Copies what has changed, soon."""
        waiting = self._last is not None and not (self._last.running() or self._last.done())
        if self._active and not waiting:
            self._last = self._thread.submit(self._push)

    def close(self) -> None:
        """Copies what has changed, now."""
        if self._active:
            self._thread.submit(self._push).result()
        self._thread.shutdown()

    def _push(self) -> None:
        try:
            paths = [self._workdir / name for name in _FILES]
            paths += (self._workdir / TENSORBOARD).glob("*")
            for path in paths:
                if path.exists():
                    self._copy(path.relative_to(self._workdir).as_posix(), path)
        except Exception as error:
            if not self._failed:
                self._notice(f"the records are not copied to {self._place}: {error}")
            self._failed = True

    def _copy(self, name: str, path: Path) -> None:
        found = path.stat()
        if self._copied.get(name) == (found.st_mtime_ns, found.st_size):
            return
        target = self._place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(target, path.read_bytes())
        self._copied[name] = (found.st_mtime_ns, found.st_size)


def _last_step(text: str) -> int:
    return max((int(record["step"]) for record in parse_records(text)), default=0)
