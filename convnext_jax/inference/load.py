"""Models with trained weights, from wherever the weights are."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from convnext_jax import sharding, tree
from convnext_jax.errors import InputError
from convnext_jax.models.registry import Model, get_pretrained
from convnext_jax.models.spec import ModelDescription, ModelSpec, params_of
from convnext_jax.models.variants import VARIANTS, Preprocessing

_HEAD = ("head/kernel", "head/bias")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with trained weights, and what is known about it.

    Attributes:
      model: with float32 parameters.
      spec: what it was built from.
      preprocessing: how images are fed to it.
      class_names: as the weights' source has them, by label; None: unknown.
      licence: of the weights, SPDX where there is such a name; None: unknown.
    """

    model: Model
    spec: ModelSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    licence: str | None


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Parameters by name, and what their source says of them.

    The arrays are JAX's, where they shall lie, or NumPy's.
    """

    arrays: dict[str, Any]
    description: ModelDescription
    licence: str | None


def load_pretrained(
    source: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    step: str = "latest",
    ema: bool | None = None,
    head: bool = True,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> Model:
    """Returns the model of `load` alone; the arguments are the same."""
    return load(source, num_classes, step=step, ema=ema, head=head, rngs=rngs, **overrides).model


def load(
    source: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    step: str = "latest",
    ema: bool | None = None,
    head: bool = True,
    rngs: nnx.Rngs | None = None,
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Loaded:
    """Builds a model with trained weights.

    Args:
      source: a checkpoint of this project (a run's workdir, the directory of its checkpoints, or
        one step's), a name of `list_pretrained()`, or whatever `convert.loading.load` takes: a
        PyTorch or safetensors file, a Hugging Face folder or `hf-hub:organisation/name`, an URL.
      num_classes: length of the logits; 0 for embeddings; None: as many as the weights are for. If
        they are for another number, and only then, the head is not loaded but random.
      step: of a checkpoint of this project: `latest`, `best` or a number.
      ema: the moving average of the parameters instead of the parameters themselves. None: of a
        checkpoint of this project the average if it has one, as that is what the recipe evaluates;
        of anything else the parameters, unless the file has the average alone.
      head: whether to load the head; False: a random one, for other classes of the same number.
      rngs: its `params` stream draws a random head; None is `nnx.Rngs(0)`.
      mesh: devices, of one or of several processes, over which `sharding.parameter_shardings` lays
        the parameters; no device holds more of them on the way. None: they go to one device.
      **overrides: as in `create_model`, such as `drop_path=0.1`; they replace what the weights'
        source says of the model.

    Raises:
      InputError: there are no such weights, or they do not fit the model.
    """
    source = os.fspath(source)
    weights = _find(source, step, ema, mesh)
    found = weights.description
    spec = ModelSpec(
        found.spec.name,
        found.spec.num_classes if num_classes is None else num_classes,
        {**found.spec.overrides, **overrides},
    )
    head = head and spec.num_classes == found.spec.num_classes
    return Loaded(
        model=_build(spec, weights, head, rngs, mesh, source),
        spec=spec,
        preprocessing=found.preprocessing,
        class_names=found.class_names if head else None,
        licence=weights.licence,
    )


def _find(source: str, step: str, ema: bool | None, mesh: Mesh | None) -> _Weights:
    path = Path(source).expanduser()
    # A folder of Hugging Face's has its weights right in it.
    if path.is_dir() and not any((*path.glob("*.safetensors*"), *path.glob("*.bin*"))):
        return _from_checkpoint(path, step, ema, mesh)
    if step != "latest":
        raise InputError(f"`step` (={step}) is for checkpoints of training runs; {source} is none")
    if not path.exists() and source.partition(".")[0] in VARIANTS:
        source = f"hf-hub:{get_pretrained(source).hub_id}"
    return _converted(source, ema)


def _from_checkpoint(path: Path, step: str, ema: bool | None, mesh: Mesh | None) -> _Weights:
    # Here, so that weights of other kinds load without Orbax.
    from convnext_jax.checkpointing.manager import (
        abstract_like,
        find_step,
        read_description,
        restore,
    )

    if ema is None:
        directory, number = find_step(path, "latest", "")
        ema = (directory / str(number) / "ema").is_dir()
    item = "ema" if ema else "params"
    directory, number = find_step(path, step, f"eval_{item}_top1")
    described = read_description(directory, number)
    try:
        description = ModelDescription.from_json(described)
    except KeyError as error:
        raise InputError(
            f"the description of the checkpoint {directory / str(number)} must have"
            f" `{error.args[0]}`"
        ) from error
    shapes = description.spec.abstract_params()
    wanted = abstract_like(shapes, _places(shapes, mesh))
    params = restore(directory, number, {item: wanted})[item]
    return _Weights(tree.flatten_with_names(params), description, described.get("licence"))


def _converted(source: str, ema: bool | None) -> _Weights:
    # Here, so that checkpoints load without what converting needs.
    from convnext_jax.convert import loading

    found = loading.load(source, ema=bool(ema))
    spec = ModelSpec(found.model_name, found.num_classes, found.overrides)
    return _Weights(
        tree.flatten_with_names(found.params),
        ModelDescription(spec, found.preprocessing, found.class_names),
        found.licence,
    )


def _places(shapes: Any, mesh: Mesh | None) -> Any:
    """The sharding of each array of a tree of shapes."""
    if mesh is not None:
        return sharding.parameter_shardings(shapes, mesh)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: device, shapes)


def _build(
    spec: ModelSpec,
    weights: _Weights,
    head: bool,
    rngs: nnx.Rngs | None,
    mesh: Mesh | None,
    source: str,
) -> Model:
    """Builds the model that `spec` describes with all weights that are for it."""
    graph, state = nnx.split(nnx.eval_shape(spec.create))
    shapes, arrays, saved = nnx.to_pure_dict(state), weights.arrays, weights.description.spec
    places = tree.flatten_with_names(_places(shapes, mesh))
    if not head:
        arrays = {name: array for name, array in arrays.items() if name not in _HEAD}
        arrays |= _random_head(spec, rngs, places)
    channels = spec.overrides.get("in_channels", 3)
    if channels != saved.overrides.get("in_channels", 3):
        from convnext_jax.convert import surgery

        kernel = surgery.first_kernel(arrays)
        arrays = arrays | {kernel: surgery.other_channels(np.asarray(arrays[kernel]), channels)}
    difference = tree.first_difference(arrays, tree.flatten_with_names(shapes))
    if difference is not None:
        raise InputError(f"the weights in {source} do not fit {spec.name}: {difference}")
    params = tree.map_with_names(lambda name, _: _placed(arrays[name], places[name]), shapes)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _placed(array: Any, place: jax.sharding.Sharding) -> jax.Array:
    """Puts the parts of a NumPy array where they belong; one of JAX's is there already."""
    if isinstance(array, jax.Array):
        return array
    # Copies, for what is mapped from a file to be independent of it.
    return jax.make_array_from_callback(
        array.shape, place, lambda index: np.array(array[index], np.float32)
    )


def _random_head(
    spec: ModelSpec, rngs: nnx.Rngs | None, places: dict[str, Any]
) -> dict[str, jax.Array]:
    """The initial parameters of the head alone: the compiler drops the rest."""
    key = (nnx.Rngs(0) if rngs is None else rngs).params()
    names = [name for name in _HEAD if name in places]

    def head(key: jax.Array) -> dict[str, jax.Array]:
        arrays = tree.flatten_with_names(params_of(spec.create(nnx.Rngs(key))))
        return {name: arrays[name] for name in names}

    return jax.jit(head, out_shardings={name: places[name] for name in names})(key)
