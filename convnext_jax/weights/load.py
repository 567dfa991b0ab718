"""Models with trained weights, from wherever the weights are."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from convnext_jax import tree
from convnext_jax.convert import surgery
from convnext_jax.errors import InputError
from convnext_jax.models.registry import Model, backbone_name, same_network
from convnext_jax.models.spec import ModelSpec, batch_stats_of, params_of
from convnext_jax.models.variants import Preprocessing
from convnext_jax.weights.find import Weights, find, placed, shardings

# What a classifier's weights give to a model that has it as its backbone.
_OF_BACKBONES = ("downsample_layers/", "stages/")
_IN_BACKBONES = tuple(f"backbone/{part}" for part in _OF_BACKBONES)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with trained weights, and what is known about it.

    Attributes:
      model: with float32 parameters.
      spec: what it was built from.
      preprocessing: how images are fed to it.
      class_names: as the weights' source has them, by label; None: unknown.
      licence: of the weights, SPDX where there is such a name; None: unknown.
      weights: where they are from, and which of the source's parameters they are.
    """

    model: Model
    spec: ModelSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    licence: str | None
    weights: Weights


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
    source: str | os.PathLike[str] | Weights,
    num_classes: int | None = None,
    *,
    step: str = "latest",
    ema: bool | None = None,
    head: bool = True,
    rngs: nnx.Rngs | None = None,
    mesh: Mesh | None = None,
    model: str | None = None,
    **overrides: Any,
) -> Loaded:
    """Builds a model with trained weights.

    Args:
      source: a run's workdir, the directory of its checkpoints or one step's, on a disk or in a
        bucket; a PyTorch or safetensors file or its URL; a Hugging Face folder;
        `hf-hub:organisation/name`; a name of `list_pretrained()`; or what `find` gave for one of
        these, which then makes `step` and `ema` superfluous.
      num_classes: length of the logits; 0 for embeddings; None: as many as the weights are for. If
        they are for another number, and only then, what gives the logits is not loaded but random.
      step: of a checkpoint of this project: `latest`, `best` or a number.
      ema: the moving average of the parameters instead of the parameters themselves. None: the
        average where there is one, as that is what the recipe evaluates.
      head: whether to load the head; False: a random one, for other classes of the same number.
      rngs: its `params` stream draws a random head; None is `nnx.Rngs(0)`.
      mesh: devices, of one or of several processes, over which `sharding.parameter_shardings` lays
        the parameters; no device holds more of them on the way. None: they go to one device.
      model: name of the model to build, if it is another than the weights': one that has theirs as
        its backbone, whose other parameters are random.
      **overrides: as in `create_model`, such as `drop_path=0.1`; they replace what the weights'
        source says of the model.

    Raises:
      InputError: there are no such weights, or they do not fit the model.
    """
    weights = source if isinstance(source, Weights) else find(source, step=step, ema=ema)
    found = weights.description
    spec = ModelSpec(
        found.spec.name if model is None else model,
        found.spec.num_classes if num_classes is None else num_classes,
        {**found.spec.overrides, **overrides},
    )
    if not same_network(spec.name, found.spec.name):
        if backbone_name(spec.name) != found.spec.name:
            raise InputError(
                f"the weights in {weights.source} must be of {spec.name} or its backbone, and are"
                f" of {found.spec.name}"
            )
    head = (
        head
        and same_network(spec.name, found.spec.name)
        and spec.num_classes == found.spec.num_classes
    )
    return Loaded(
        model=_build(spec, weights, head, rngs, mesh),
        spec=spec,
        preprocessing=found.preprocessing,
        class_names=found.class_names if head else None,
        licence=weights.licence,
        weights=weights,
    )


def _build(
    spec: ModelSpec, weights: Weights, head: bool, rngs: nnx.Rngs | None, mesh: Mesh | None
) -> Model:
    """Builds the model that `spec` describes with all weights that are for it."""
    graph, state = nnx.split(spec.abstract())
    shapes, saved = nnx.to_pure_dict(state), weights.description.spec
    places = tree.flatten_with_names(shardings(shapes, mesh))
    arrays = tree.flatten_with_names(weights.read(mesh))
    if not same_network(saved.name, spec.name):
        head = True  # a random one is among what the backbone does not have
        arrays = {
            f"backbone/{name}": array
            for name, array in arrays.items()
            if name.startswith(_OF_BACKBONES)
        }
        others = [name for name in places if not name.startswith(_IN_BACKBONES)]
        arrays |= _random(spec, rngs, places, others)
    else:
        arrays |= tree.flatten_with_names(weights.batch_stats(mesh))
    if not head:
        arrays = {name: array for name, array in arrays.items() if not _is_head(name)}
        arrays |= _random(spec, rngs, places, [name for name in places if _is_head(name)])
    channels = spec.overrides.get("in_channels", 3)
    if channels != saved.overrides.get("in_channels", 3):
        kernel = surgery.first_kernel(arrays)
        changed = surgery.other_channels(np.asarray(arrays[kernel]), channels)
        arrays = arrays | {kernel: placed(changed, places[kernel])}
    difference = tree.first_difference(arrays, tree.flatten_with_names(shapes))
    if difference is not None:
        raise InputError(f"the weights in {weights.source} do not fit {spec.name}: {difference}")
    return nnx.merge(graph, tree.map_with_names(lambda name, _: arrays[name], shapes))


def _is_head(name: str) -> bool:
    """Whether an array is of what gives the logits, and with them of the classes."""
    return name.startswith("head/") or surgery.is_last(name)


def _random(
    spec: ModelSpec, rngs: nnx.Rngs | None, places: dict[str, Any], names: list[str]
) -> dict[str, jax.Array]:
    """Some of the initial arrays; the others are not drawn."""
    model = spec.initial(rngs)
    drawings = tree.flatten_with_names(params_of(model))
    drawings |= tree.flatten_with_names(batch_stats_of(model))
    return {name: placed(drawings[name].values(), places[name]) for name in names}
