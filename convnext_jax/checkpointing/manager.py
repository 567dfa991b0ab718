"""Checkpoints of a training run: one directory a step, visible only when complete.

A step holds `params`, `ema` where there is one, and `optimizer`, each in a directory of its own so
that a reader takes only what it needs, and `description`: JSON with the model, the preprocessing
and the resolved config, which makes a checkpoint usable without its config file.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from convnext_jax import processes, tree
from convnext_jax.checkpointing.damage import completed_steps, write_checksums
from convnext_jax.errors import InputError, RunError
from convnext_jax.retry import retrying

# The items of a step that are trees of arrays.
ARRAYS = ("params", "ema", "optimizer")
DESCRIPTION = "description"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask by itself whether the machine is taken away.

    It would ask JAX about steps, and training asks about more places than those: the two counts
    must not mix.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints in one directory."""

    def __init__(self, directory: epath.PathLike, *, best_metric: str, keep_last: int = 2) -> None:
        """Opens the directory, creates it if need be, and clears away what a killed save left.

        Args:
          directory: absolute path; holds nothing but checkpoints.
          best_metric: the name of a metric given to `save`; the step with its highest value is
            kept.
          keep_last: how many of the newest steps to keep beside it.
        """

        def best_fn(metrics: Mapping[str, float]) -> float:
            return metrics[best_metric]

        policies = [
            LatestN(keep_last),
            BestN(get_metric_fn=best_fn, n=1, keep_checkpoints_without_metrics=False),
        ]
        self._directory = epath.Path(directory)
        self._saving: int | None = None  # the step whose save was started last
        self._failed = False
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                # Only for Orbax to store the metrics, which the policy reads in later sessions.
                best_fn=best_fn,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            ),
            item_handlers=_handlers(),
        )

    def _complete(self) -> None:
        if processes.is_first() and self._saving is not None:
            write_checksums(self._directory, self._saving)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def evaluated(self, step: int) -> bool:
        """Whether a complete step was saved with evaluation results."""
        return self._manager.metrics(step) is not None

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        description: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save a step; returns when the arrays are copied, and may be donated.

        Args:
          step: optimiser steps done. A step that is there already is left as it is, except that
            one without evaluation results is replaced by one with them.
          arrays: trees by item name, those of `ARRAYS` that there are.
          description: what JSON can hold.
          metrics: evaluation results, for keeping the best.

        Raises:
          RunError: this save or an earlier one failed; earlier complete steps are untouched.
        """
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(value) for name, value in arrays.items()
        }
        items[DESCRIPTION] = ocp.args.JsonSave(dict(description))
        self.wait()  # as Orbax would, but then its error is known to be that of the step before
        self._saving = step
        try:
            self._check_space(arrays)
            if metrics is not None and step in self._manager.all_steps():
                if self.evaluated(step):
                    return
                self._manager.delete(step)
            retrying(
                lambda: self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
            )
        except Exception as error:
            raise self._failure(error) from error

    def _check_space(self, arrays: Mapping[str, Any]) -> None:
        """Raises OSError if the disk is too full, before anything is half-written."""
        if "://" in os.fspath(self._directory):  # a bucket
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
        """Returns when all saves are complete.

        Raises:
          RunError: one of them failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises `RunError` if a save failed meanwhile; does not wait."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> RunError:
        self._failed = True
        complete = completed_steps(self._directory)
        kept = (
            f"step {complete[-1]} is complete and usable" if complete else "there is no earlier one"
        )
        return RunError(
            f"saving step {self._saving} to {self._directory} failed ({_reason(error)}); {kept}"
        )

    def close(self) -> None:
        """Waits for saves and frees threads.

        Raises:
          RunError: a save failed, and no call raised that before.
        """
        try:
            self._manager.close()
        except Exception as error:
            # Each of Orbax's threads of a save that failed has an error; the first said why.
            if not self._failed:
                raise self._failure(error) from error


def absolute(path: epath.PathLike) -> epath.Path:
    """A path from anywhere: `~` is the home directory, `gs://...` stays as it is."""
    found = epath.Path(path)
    return found if "://" in os.fspath(path) else found.expanduser().absolute()


def find_step(checkpoint: epath.PathLike, which: str, best_metric: str) -> tuple[epath.Path, int]:
    """Finds a checkpoint that a user named.

    Args:
      checkpoint: a run's workdir, the directory of its checkpoints, or one step's.
      which: `latest`, `best`, or a step; one step's directory leaves only `latest`.
      best_metric: name of the metric that `best` is the highest of.

    Returns:
      The directory of checkpoints, absolute, and the step.

    Raises:
      InputError: there is no such checkpoint.
    """
    directory = absolute(checkpoint)
    if which == "latest" and directory.name.isdigit():
        directory, which = directory.parent, directory.name
    elif (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    steps = completed_steps(directory)
    if not steps:
        raise InputError(f"there is no complete checkpoint in {checkpoint}")
    if which == "latest":
        return directory, steps[-1]
    if which == "best":
        with _reader(directory) as manager:
            metrics = {step: manager.metrics(step) or {} for step in steps}
        scores = {s: m[best_metric] for s, m in metrics.items() if best_metric in m}
        if not scores:
            raise InputError(f"no checkpoint in {checkpoint} has the metric `{best_metric}`")
        return directory, max(scores, key=lambda step: (scores[step], step))
    if not which.isdigit() or int(which) not in steps:
        raise InputError(
            f"the step (={which}) must be latest, best, or one of those in {checkpoint}:"
            f" {', '.join(map(str, steps))}"
        )
    return directory, int(which)


def restore(directory: epath.PathLike, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads trees of arrays from one step.

    Args:
      directory: of checkpoints.
      step: one of `completed_steps(directory)`.
      abstract: for each item wanted, a tree of `jax.ShapeDtypeStruct` with shardings.

    Returns:
      The trees, with arrays placed as asked, bit by bit as they were saved.

    Raises:
      InputError: an item is not there, or its arrays are not those expected; the first difference
        of `params` is named.
    """
    folder = epath.Path(directory) / str(step)
    with _reader(directory) as manager:
        metadata = manager.item_metadata(step)
        for name in sorted(abstract, key=ARRAYS.index):
            if metadata.get(name) is None:
                raise InputError(f"the checkpoint {folder} has no `{name}`")
            difference = tree.first_difference(
                tree.flatten_with_names(metadata[name]), tree.flatten_with_names(abstract[name])
            )
            if difference is not None:
                raise InputError(
                    f"the checkpoint {folder} belongs to another model: in `{name}`, {difference}"
                )
        items = {name: ocp.args.StandardRestore(value) for name, value in abstract.items()}
        return dict(manager.restore(step, args=ocp.args.Composite(**items)))


def read_description(directory: epath.PathLike, step: int) -> dict[str, Any]:
    """Reads what `Checkpoints.save` was given as the description of a step."""
    with _reader(directory) as manager:
        args = ocp.args.Composite(**{DESCRIPTION: ocp.args.JsonRestore()})
        return manager.restore(step, args=args)[DESCRIPTION]


def _reader(directory: epath.PathLike) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=_handlers(),
    )


def _handlers() -> dict[str, Any]:
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
    handlers[DESCRIPTION] = ocp.JsonCheckpointHandler()
    return handlers


def _reason(error: Exception) -> str:
    """The innermost cause of an error, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0]


def abstract_like(values: Any, shardings: Any) -> Any:
    """Shapes, types and shardings for `restore`, from a tree of arrays or shapes."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, shardings
    )
