"""Reading checkpoints: which step a user means, its description, its arrays."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from convnext_jax import tree
from convnext_jax.checkpointing.steps import (
    ARRAYS,
    DESCRIPTION,
    completed_steps,
    in_bucket,
    read_evaluation,
)
from convnext_jax.errors import InputError


def absolute(path: epath.PathLike) -> epath.Path:
    """A path from anywhere: `~` is the home directory, `gs://...` stays as it is."""
    found = epath.Path(path)
    return found if in_bucket(path) else found.expanduser().absolute()


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
    if (directory / "checkpoints").is_dir():  # of a workdir, though it may be called by a number
        directory = directory / "checkpoints"
    elif which == "latest" and directory.name.isdigit():
        directory, which = directory.parent, directory.name
    steps = completed_steps(directory)
    if not steps:
        raise InputError(f"there is no complete checkpoint in {checkpoint}")
    if which == "latest":
        return directory, steps[-1]
    if which == "best":
        records = {step: read_evaluation(directory, step) or {} for step in steps}
        scores = {s: r[best_metric] for s, r in records.items() if best_metric in r}
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
    with ocp.Checkpointer(handler()) as reader:
        metadata = reader.metadata(folder).item_metadata
        for name in sorted(abstract, key=ARRAYS.index):
            if metadata.get(name) is None:
                raise InputError(f"the checkpoint {folder} has no `{name}`")
            difference = tree.first_difference(
                tree.flatten_with_names(metadata[name]), tree.flatten_with_names(abstract[name])
            )
            if difference is not None:
                raise InputError(f"the checkpoint {folder} {_MISFIT[name]}, {difference}")
        items = {name: ocp.args.StandardRestore(value) for name, value in abstract.items()}
        return dict(reader.restore(folder, args=ocp.args.Composite(**items)))


# What it means that an item has other arrays; `params` is looked at first.
_MISFIT = {
    "params": "belongs to another model: in `params`",
    "batch_stats": "belongs to another model: in `batch_stats`",
    "ema": "belongs to another model: in `ema`",
    "ema_batch_stats": "belongs to another model: in `ema_batch_stats`",
    "optimizer": "fits the model, but was written with another configuration of the optimiser"
    " (`optim`): in `optimizer`",
}


def read_description(directory: epath.PathLike, step: int) -> dict[str, Any]:
    """Reads what `Checkpoints.save` was given as the description of a step."""
    # In the file that Orbax's handler of JSON writes.
    return json.loads((epath.Path(directory) / str(step) / DESCRIPTION / "metadata").read_text())


def handler() -> ocp.CompositeCheckpointHandler:
    """What reads and writes the items of a step."""
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ARRAYS}
    handlers[DESCRIPTION] = ocp.JsonCheckpointHandler()
    return ocp.CompositeCheckpointHandler(**handlers)


def abstract_like(values: Any, shardings: Any) -> Any:
    """Shapes, types and shardings for `restore`, from a tree of arrays or shapes."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), values, shardings
    )
