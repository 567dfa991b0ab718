"""Models and weights as checkpoints of this project, which every command reads."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from convnext_jax import tree
from convnext_jax.errors import InputError, needed_for
from convnext_jax.models.registry import Model, get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec, batch_stats_of, params_of
from convnext_jax.models.variants import Preprocessing


def save_pretrained(
    model: Model,
    folder: str | os.PathLike[str],
    name: str,
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    licence: str | None = None,
    **overrides: Any,
) -> None:
    """Writes a model so that `load_pretrained` and all commands read it.

    Args:
      model: from `create_model` or `load_pretrained`, trained or not.
      folder: to write, new or empty.
      name: what the model was created with.
      preprocessing: how images are fed to it; None: as to the model of that name in the paper.
      class_names: one for each class, in the order of the logits; None: unknown.
      licence: of the weights, SPDX where there is such a name; None: unknown.
      **overrides: what the model was created with, beside its name and number of classes.

    Raises:
      InputError: the model is not what `name` and `overrides` make, there are not as many names as
        classes, or the folder has a checkpoint already or cannot be written.
    """
    if class_names is not None and len(class_names) != model.num_classes:
        raise InputError(
            f"the number of `class_names` (={len(class_names)}) must be the model's number of"
            f" classes (={model.num_classes})"
        )
    spec = ModelSpec(name, model.num_classes, overrides)
    params, batch_stats = params_of(model), batch_stats_of(model)
    difference = tree.first_difference(
        tree.flatten_with_names(params), tree.flatten_with_names(spec.abstract_params())
    )
    if difference is not None:
        raise InputError(f"`model` must be {name} with the given overrides: {difference}")
    built, expected = (nnx.split(m)[0] for m in (model, spec.abstract()))
    if built != expected:
        raise InputError(
            f"`model` must be {name} with the overrides that it was created with: what has no"
            " parameters differs, such as `activation`, `norm_eps`, `dtype` or `drop_path`"
        )
    if preprocessing is None:
        variant = get_variant(name)
        fields = (field.name for field in dataclasses.fields(Preprocessing))
        preprocessing = Preprocessing(**{field: getattr(variant, field) for field in fields})
    names = None if class_names is None else tuple(class_names)
    described = ModelDescription(spec, preprocessing, names).to_json()
    described |= {"parameters": "params", "licence": licence}
    write_checkpoint(Path(folder), described, params, batch_stats)


def write_checkpoint(
    folder: Path, described: Mapping[str, Any], params: Any, batch_stats: Any
) -> None:
    """Writes a checkpoint with the weights alone, step 0 of what looks like a run's workdir.

    Args:
      folder: the workdir, new or without a checkpoint.
      described: what the checkpoint says of itself, as JSON.
      params: tree of arrays.
      batch_stats: tree of arrays, empty for most models.

    Raises:
      InputError: there is a checkpoint already, or the folder cannot be written.
    """
    # Here, so that models load and are created without Orbax.
    with needed_for("writing checkpoints", "predict"):
        from convnext_jax.checkpointing.manager import Checkpoints
        from convnext_jax.checkpointing.steps import completed_steps
    directory = folder.expanduser().absolute() / "checkpoints"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        probe = directory.parent / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder} must be a folder that can be written: {error}") from (error)
    if completed_steps(directory):
        raise InputError(f"{folder} must not hold a checkpoint already")
    checkpoints = Checkpoints(directory, best_metric="none")
    items = {"params": jax.tree.map(np.asarray, params)}
    if batch_stats:
        items["batch_stats"] = jax.tree.map(np.asarray, batch_stats)
    checkpoints.save(0, items, dict(described))
    checkpoints.wait()
    checkpoints.close()
