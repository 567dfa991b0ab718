"""Finds weights by whatever a user names, and reads them onto devices.

All commands understand the same words, because all of them ask here:

- a checkpoint of ours: a run's workdir, the directory of its checkpoints, or one step's; on a disk
  or in a bucket (`gs://...`);
- weights of others: a PyTorch or safetensors file or a Hugging Face folder, on a disk or in a
  bucket; the URL of a file; `hf-hub:organisation/name`; or a published name, of `list_pretrained()`
  or `models.pretrained.NOT_ON_HUB`.
"""

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.convert.download import WEIGHTS
from convnext_jax.data import coco_classes
from convnext_jax.errors import InputError, needed_for
from convnext_jax.models.pretrained import NOT_ON_HUB, PRETRAINED
from convnext_jax.models.registry import get_pretrained, get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import VARIANTS

_HUB = "hf-hub:"
# What the commands' helps say of the argument that names weights.
NAMES = (
    "a run's workdir, its directory of checkpoints or one step's, here or in a bucket"
    " (gs://...); a PyTorch or safetensors file, or its URL; a Hugging Face folder;"
    " hf-hub:organisation/name; or a published name such as convnext_tiny.fb_in1k"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that were found, and what their source says of them.

    Attributes:
      source: as the user named it.
      description: model, preprocessing and classes.
      parameters: which of the source's, a key of `constants.PARAMETERS`.
      step: of a checkpoint of ours; None: they are from elsewhere.
      config: of the run that they are from, as JSON has it; None: they are from elsewhere.
      origin: of weights that were converted, `source`, `format`, `sha256`, `licence`, `notes`.
    """

    source: str
    description: ModelDescription
    parameters: str
    step: int | None
    config: dict[str, Any] | None
    origin: dict[str, Any]
    _place: tuple[Any, int, str] | None = None  # directory of checkpoints, step and item
    _params: Any = None  # NumPy arrays, where there is no place
    _batch_stats: Any = dataclasses.field(default_factory=dict)  # likewise

    @property
    def licence(self) -> str | None:
        """Of the weights, SPDX where there is such a name; None: unknown."""
        return self.origin.get("licence")

    @property
    def fingerprint(self) -> str:
        """Other weights under the same name have another one; 16 hexadecimal digits."""
        said = [self.step, self.parameters, self.config, self.origin.get("sha256")]
        parts = [json.dumps([*said, self.description.to_json()], sort_keys=True, default=str)]
        if self._place is not None:
            folder = self._place[0] / str(self._place[1])
            # When the step was written, and the hashes of its files.
            for name in ("_CHECKPOINT_METADATA", "checksums.txt"):
                if (file := folder / name).exists():
                    parts.append(file.read_text())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """What they are, as messages name them."""
        return self.source if self.step is None else f"step {self.step} of {self.source}"

    def read(self, mesh: Mesh | None = None) -> Any:
        """Reads the parameters onto devices, each array straight to where it shall lie.

        Args:
          mesh: devices, of one or of several processes, over which `sharding.parameter_shardings`
            lays the arrays; None: they go to one device of this process.

        Returns:
          The tree of parameters, float32.

        Raises:
          InputError: the checkpoint does not have what its description says.
        """
        shapes = self.description.spec.abstract_params()
        return self._read("", self._params, shapes, mesh)

    def batch_stats(self, mesh: Mesh | None = None) -> Any:
        """Reads the batch statistics that belong to the parameters, as `read` does; mostly none."""
        shapes = self.description.spec.abstract_batch_stats()
        return self._read("batch_stats", self._batch_stats, shapes, mesh) if shapes else {}

    def _read(self, kind: str, arrays: Any, shapes: Any, mesh: Mesh | None) -> Any:
        places = shardings(shapes, mesh)
        if self._place is None:
            return jax.tree.map(placed, arrays, places)
        # Here, so that weights of other kinds load without Orbax.
        from convnext_jax.checkpointing.reading import abstract_like, restore

        directory, step, item = self._place
        if kind:
            item = {"params": kind, "ema": f"ema_{kind}"}[item]
        return restore(directory, step, {item: abstract_like(shapes, places)})[item]

    def on_host(self) -> Any:
        """Reads the parameters as a tree of NumPy arrays, float32."""
        return self._params if self._place is None else jax.tree.map(np.array, self.read())

    def batch_stats_on_host(self) -> Any:
        """Likewise the batch statistics."""
        return (
            self._batch_stats if self._place is None else jax.tree.map(np.array, self.batch_stats())
        )


def find(
    source: str | os.PathLike[str],
    *,
    step: str = "latest",
    ema: bool | None = None,
    **conversion: Any,
) -> Weights:
    """Finds weights and reads what their source says of them.

    Args:
      source: what the top of this file lists.
      step: of a checkpoint of ours: `latest`, `best` or a number. `best` is the best of the
        parameters that are taken.
      ema: the moving average of the parameters, or (False) the raw ones; None: the average where
        there is one, as that is what the recipe evaluates.
      **conversion: for weights of others, `format`, `model`, `overrides`, `num_classes` and
        `in_channels` as `convert.loading.load` takes them.

    Raises:
      InputError: there are no such weights, or they cannot be read.
    """
    source = os.fspath(source)
    location = resolve(source)
    given = {key: value for key, value in conversion.items() if value not in (None, {})}
    if location is None:
        if given:
            option = next(iter(given))
            raise InputError(f"`--{option}` must not be given for a checkpoint of ours")
        return _checkpoint(source, step, ema)
    if step != "latest":
        raise InputError(f"`step` (={step}) is for checkpoints of training runs; {source} is none")
    return _converted(source, location, ema, given)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Adds the flags by which all commands choose among what one name stands for."""
    parser.add_argument(
        "--step",
        default="latest",
        help="of a run: latest (default), best, or a number",
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="the moving average of the parameters, or the raw ones (default: the moving average"
        " if there is one)",
    )


def resolve(source: str) -> str | None:
    """Tells what a user named.

    Returns:
      None for a checkpoint of ours; for weights of others where `convert.read` finds them.

    Raises:
      InputError: there is nothing of that name.
    """
    if source.startswith((_HUB, "http://", "https://")):
        return source
    path = _path(source)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except Exception as error:  # buckets have errors of their own
        raise InputError(f"{source} cannot be reached: {error}") from error
    if is_folder:
        return source if _is_of_others([entry.name for entry in path.iterdir()]) else None
    if exists:
        return source
    if source in NOT_ON_HUB and (url := NOT_ON_HUB[source].url) is not None:
        return url
    if source in PRETRAINED or "." in source and source.partition(".")[0] in VARIANTS:
        return f"{_HUB}{get_pretrained(source).hub_id}"
    raise InputError(f"there is no file or folder {source}{_hint(source)}")


def _is_of_others(names: list[str]) -> bool:
    """Whether a folder with these entries is one of Hugging Face's, with weights right in it."""
    if "checkpoints" in names:
        return False
    # Steps are called by their numbers.
    named = any(name in WEIGHTS for name in names)
    return named or not any(name.isdigit() for name in names) and any(map(_is_file, names))


def _is_file(name: str) -> bool:
    return name.endswith((".pth", ".pt", ".bin", ".safetensors", ".index.json"))


def _hint(source: str) -> str:
    """How what is not there may have been meant, the end of a sentence."""
    if source in VARIANTS:
        names = (*PRETRAINED, *NOT_ON_HUB)
        known = [name for name in names if name.partition(".")[0] == source]
        if not known:
            return f"; {source} is a model, of which no published weights are known"
        return f"; {source} is a model, whose published weights are called {' or '.join(known)}"
    likely = source.count("/") == 1 and not source.startswith((".", "~", "/"))
    if likely and not _is_file(source):
        return f"; for a repository on the Hub write {_HUB}{source}"
    return ""


def _path(source: str) -> Any:
    if "://" not in source:
        return Path(source).expanduser()
    # Here, so that what is on a disk is found without it.
    with needed_for(f"reading {source}", "predict"):
        from etils import epath
    try:
        return epath.Path(source)
    except Exception as error:
        raise InputError(
            f"{source} must be in a bucket (gs://...) or behind http(s)://: {error}"
        ) from error


def _checkpoint(source: str, step: str, ema: bool | None) -> Weights:
    with needed_for(f"reading {source}", "predict"):
        from convnext_jax.checkpointing.reading import find_step, read_description
    directory, number = find_step(source, "latest", "")
    if ema is None:
        ema = (directory / str(number) / "ema").is_dir()
    item = "ema" if ema else "params"
    if step != "latest":
        # Runs from before there were several tasks have no name of what decides.
        metric = read_description(directory, number).get("metric", "top1")
        directory, number = find_step(source, step, f"eval_{item}_{metric}")
    described = read_description(directory, number)
    try:
        description = ModelDescription.from_json(described)
    except KeyError as error:
        raise InputError(
            f"the description of the checkpoint {directory / str(number)} must have"
            f" `{error.args[0]}`"
        ) from error
    return Weights(
        source=source,
        description=description,
        # Converted weights are one set of parameters, and say which of their source's.
        parameters=described.get("parameters", item),
        step=number,
        config=described.get("config"),
        origin={
            "source": source,
            "format": "convnext_jax",
            "sha256": described.get("sha256") or {},
            "licence": described.get("licence"),
            "notes": (),
        },
        _place=(directory, number, item),
    )


def _converted(
    source: str, location: str, ema: bool | None, conversion: Mapping[str, Any]
) -> Weights:
    # Here, so that checkpoints load without what converting needs.
    from convnext_jax.convert import loading

    found = loading.load(location, ema=ema, **conversion)
    spec = ModelSpec(found.model_name, found.num_classes, found.overrides)
    names = found.class_names
    detects = get_variant(spec.name).task == "detection"
    if names is None and detects and "num_classes" not in conversion:
        # Detectors of so many classes are COCO's, in its order, unless they say otherwise.
        of_coco = coco_classes.CLASSES
        names = of_coco if spec.num_classes == len(of_coco) else None
    return Weights(
        source=source,
        description=ModelDescription(spec, found.preprocessing, names),
        parameters=found.parameters,
        step=None,
        config=None,
        origin={
            key: getattr(found, key) for key in ("source", "format", "sha256", "licence", "notes")
        },
        _params=found.params,
        _batch_stats=found.batch_stats,
    )


def shardings(shapes: Any, mesh: Mesh | None) -> Any:
    """The sharding of each array of a tree of shapes, as `Weights.read` lays them."""
    if mesh is not None:
        return sharding.parameter_shardings(shapes, mesh)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: device, shapes)


def placed(array: np.ndarray, place: jax.sharding.Sharding) -> jax.Array:
    """Copies an array that every process has onto devices, to each no more than its part."""
    # Copies, so that what is mapped from a file does not follow the file.
    return jax.make_array_from_callback(
        array.shape, place, lambda index: np.array(array[index], np.float32)
    )
