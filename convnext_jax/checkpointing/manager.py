"""Checkpoints of a training run: one directory a step, visible only when complete.

A step holds `params`, `ema` where there is one, the `batch_stats` of both where the model has any,
and `optimizer`, each in a directory of its own so that a reader takes only what it needs, and
`description`: JSON with the model, the preprocessing and the resolved config, which makes a
checkpoint usable without its config file.
"""

import contextlib
import errno
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from etils import epath

from convnext_jax import processes
from convnext_jax.checkpointing import owner
from convnext_jax.checkpointing.damage import Stopped, write_checksums
from convnext_jax.checkpointing.reading import handler
from convnext_jax.checkpointing.shared import appears, require_step
from convnext_jax.checkpointing.steps import (
    DESCRIPTION,
    completed_steps,
    delete_incomplete,
    delete_step,
    in_bucket,
    kept_steps,
    read_evaluation,
    write_evaluation,
)
from convnext_jax.errors import Lost, RunError
from convnext_jax.retry import is_passing, retrying

# How long a process that is told to leave goes on computing checksums.
_HURRY_SECONDS = 5


class Checkpoints:
    """The checkpoints in one directory, as the run sees them that writes there.

    All processes make the same calls; they agree on what is there when it is opened. Writing goes
    on in the background, in the order of the calls: a step, what is no longer worth its space, and
    the evaluation's results once they come; beside that, checksums.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        best_metric: str,
        keep_last: int = 2,
        notice: Callable[[str], None] = print,
    ) -> None:
        """Looks at the directory, and changes nothing there.

        Args:
          directory: absolute path; only runs write there.
          best_metric: the name of a result given to `add_evaluation`; the step with its highest
            value is kept.
          keep_last: how many of the newest steps to keep beside it.
          notice: told what failed without harm.

        Raises:
          RunError: this process does not see the newest step of process 0.
        """
        self._directory = epath.Path(directory)
        self._best_metric = best_metric
        self._keep_last = keep_last
        self._notice = notice
        found = "{}"
        if processes.is_first():
            steps = completed_steps(self._directory)
            found = json.dumps({step: read_evaluation(directory, step) for step in steps})
        # The complete steps, and the results of those that were evaluated.
        self._steps: dict[int, Mapping[str, float] | None] = {
            int(step): record
            for step, record in json.loads(processes.text_from_first(found)).items()
        }
        latest = self.latest_step()
        if latest is not None:
            require_step(self._directory, latest)
        self._run = ""  # as the directory's owner
        self._saving: int | None = None  # the step whose save was started last
        self._failed = self._closed = False
        self._checkpointer = ocp.AsyncCheckpointer(handler())
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writes: list[Future[None]] = []
        self._summer = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._sums: list[Future[None]] = []
        self._stop = threading.Event()

    def begin(self) -> None:
        """Makes the directory this run's, creating it if need be; the first save does it, too.

        What a killed save left is cleared away. Another run that still writes there finds out
        before its next save, and ends.

        Raises:
          Lost: another run has saved a step since this one looked, or the file system does not
            answer.
          RunError: the directory cannot be written.
        """
        if not processes.is_first() or self._run:
            return
        try:
            retrying(self._begin)
        except OSError as error:
            kind = Lost if is_passing(error) else RunError
            raise kind(f"{self._directory} cannot be written: {_reason(error)}") from error

    def _begin(self) -> None:
        newest = max(completed_steps(self._directory), default=None)
        if newest != self.latest_step():
            raise Lost(
                f"another run saved step {newest} in {self._directory} while this one began from"
                f" step {self.latest_step()}; the same command begins from the newest"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        self._run = owner.take(self._directory)
        delete_incomplete(self._directory)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(list(self._steps), default=None)

    def evaluation(self, step: int) -> Mapping[str, float] | None:
        """The results that were added to a complete step, or None."""
        return self._steps.get(step)

    def save(self, step: int, arrays: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        """Starts to save a step; returns when the arrays are copied, and may be donated.

        Args:
          step: optimiser steps done. A step that is there already is left as it is.
          arrays: trees by item name, those of `ARRAYS` that there are.
          description: what JSON can hold.

        Raises:
          RunError: this save or an earlier one failed, or another run has begun here; earlier
            complete steps are untouched.
          Lost: this save or an earlier one failed for a reason that may be gone later.
        """
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(value) for name, value in arrays.items()
        }
        items[DESCRIPTION] = ocp.args.JsonSave(dict(description))
        self.wait()  # as Orbax would, but then its error is known to be that of the step before
        if step in self._steps:
            return
        self._saving = step
        folder = self._directory / str(step)

        def start() -> None:
            # `force`: a folder of that name is none of a complete step, and is in nobody's way.
            self._checkpointer.save(folder, args=ocp.args.Composite(**items), force=True)

        try:
            self.begin()
            self._require_owned()
            retrying(lambda: self._check_space(arrays))
            # All processes call it equally often, so that none may try again by itself.
            retrying(start) if jax.process_count() == 1 else start()
        except Exception as error:
            self._fail(error)
        self._writes = [self._writer.submit(self._finish, step)]

    def _require_owned(self) -> None:
        if processes.is_first() and self._run:
            owner.require(self._directory, self._run)

    def _finish(self, step: int) -> None:
        self._checkpointer.wait_until_finished()
        self._require_owned()
        self._steps[step] = None
        self._sums = [
            *(s for s in self._sums if not s.done()),
            self._summer.submit(self._sum, step),
        ]
        self._delete_old()

    def _sum(self, step: int) -> None:
        folder = self._directory / str(step)
        try:
            if appears(folder):
                write_checksums(folder, self._stop)
        except Stopped:
            pass
        except Exception as error:  # the step is complete all the same
            if step in self._steps:  # and not deleted meanwhile
                self._notice(f"step {step} has no checksums: {_reason(error)}")

    def add_evaluation(self, step: int, record: Mapping[str, float]) -> None:
        """Adds the results of an evaluation to a step, once that is complete.

        Args:
          step: complete, or being saved.
          record: numbers by name; the same on all processes.
        """
        self._writes.append(self._writer.submit(self._finish_evaluation, step, dict(record)))

    def _finish_evaluation(self, step: int, record: dict[str, float]) -> None:
        if step not in self._steps:  # its save failed
            return
        self.begin()
        self._require_owned()
        if processes.is_first():
            write_evaluation(self._directory, step, record)
        self._steps[step] = record
        self._delete_old()

    def _delete_old(self) -> None:
        """Deletes what is neither new nor best; all processes know of it, process 0 does it."""
        scores = {
            step: None if record is None else record.get(self._best_metric)
            for step, record in self._steps.items()
        }
        for step in sorted(scores.keys() - kept_steps(scores, self._keep_last)):
            del self._steps[step]
            if not processes.is_first():
                continue
            try:
                retrying(lambda step=step: delete_step(self._directory, step))
            except Exception as error:  # it costs space; the next start tries again
                self._notice(f"step {step} cannot be deleted: {_reason(error)}")

    def _check_space(self, arrays: Mapping[str, Any]) -> None:
        """Raises OSError if the disk is too full, before anything is half-written."""
        if in_bucket(self._directory):
            return
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(arrays)))
        needed = size * 5 // 4 + 2**20  # with Orbax's indices, which weigh most in small models
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed / 2**20:.0f} MiB are needed, and {free / 2**20:.0f} MiB are free",
            )

    def wait(self) -> None:
        """Returns when all steps and evaluations are written; checksums may still be computed.

        Raises:
          RunError: one of them failed.
          Lost: one of them did, for a reason that may be gone later.
        """
        self._raise(self._writes)

    def check(self) -> None:
        """Raises `RunError` or `Lost` if a save failed meanwhile; does not wait."""
        self._raise([write for write in self._writes if write.done()])

    def _raise(self, writes: list[Future[None]]) -> None:
        try:
            for write in writes:
                write.result()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        """Raises what an error in a save means."""
        self._failed = True
        if isinstance(error, RunError | Lost):
            raise error
        if (broken := processes.broken_collective(error)) is not None:
            raise broken  # not what was saved: another process is gone
        with contextlib.suppress(OSError):  # what failed first says more
            self._require_owned()  # another run cleared away what was half-written
        complete = completed_steps(self._directory)
        kept = (
            f"step {complete[-1]} is complete and usable" if complete else "there is no earlier one"
        )
        kind = Lost if is_passing(error) else RunError
        raise kind(
            f"saving step {self._saving} to {self._directory} failed ({_reason(error)}); {kept}"
        ) from error

    def close(self, hurry: bool = False) -> None:
        """Waits for what is being written and frees threads; a second time does nothing.

        Args:
          hurry: leave out checksums that are not computed within seconds.

        Raises:
          RunError, Lost: a save failed, and no call raised that before.
        """
        if self._closed:
            return
        self._closed = True
        try:
            for write in self._writes:
                write.result()
            wait(self._sums, _HURRY_SECONDS if hurry else None)
            self._checkpointer.close()
        except Exception as error:
            # Each of Orbax's threads of a save that failed has an error; the first said why.
            if not self._failed:
                self._fail(error)
        finally:
            self._stop.set()
            self._writer.shutdown(wait=False)
            self._summer.shutdown(wait=False)


def _reason(error: Exception) -> str:
    """The innermost cause of an error, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0]
