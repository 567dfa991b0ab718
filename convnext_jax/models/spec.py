"""A model as data, and as a pure function of its parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array

from convnext_jax.models import initial, roadmap
from convnext_jax.models.layers import DepthwiseConv
from convnext_jax.models.registry import Model, create_model, get_variant
from convnext_jax.models.variants import Preprocessing
from convnext_jax.tree import map_with_names


def params_of(model: nnx.Module) -> Any:
    """The parameters of a model as a tree, whose leaves `convnext_jax.tree` names."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def batch_stats_of(model: nnx.Module) -> Any:
    """What a model keeps of the batches it saw, as a tree like its parameters; empty for most."""
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def kernel_dtypes(model: nnx.Module) -> dict[str, Any]:
    """The dtype that each kernel is rounded to when it is used, by the parameter's name.

    Parameters without one here are used as they are, or are a few numbers for each channel.
    """
    return {
        "/".join(map(str, (*path, "kernel"))): module.dtype
        for path, module in nnx.iter_graph(model)
        if isinstance(module, nnx.Linear | nnx.Conv | DepthwiseConv | roadmap.Conv)
    }


def rounded_kernels(params: Any, dtypes: Mapping[str, Any]) -> Any:
    """Parameters for inference: kernels rounded once, and not in each call; outputs are the same.

    In bfloat16 they are half as large, and a call on few images takes less time, at least on CPUs
    (docs/performance.md).

    Args:
      params: tree of parameters.
      dtypes: of its kernels, from `kernel_dtypes`.
    """
    return map_with_names(
        lambda name, a: a.astype(dtypes[name]) if dtypes.get(name) is not None else a, params
    )


# A start needs it several times; nobody writes to it.
@functools.lru_cache(maxsize=8)
def _abstract(name: str, num_classes: int, overrides: tuple[tuple[str, Any], ...]) -> nnx.Module:
    """A model whose arrays are shapes. Nothing is traced, which would take longer than building."""
    with initial.postponed():
        model = create_model(name, num_classes, **dict(overrides))
    initial.to_shapes(model)
    return model


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What `create_model` is given: enough to build a model whose parameters are elsewhere.

    Attributes:
      name: one of `list_models()`.
      num_classes: length of the logits; 0: the model returns its embedding.
      overrides: keyword arguments in which the model differs from its variant.
    """

    name: str
    num_classes: int
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        return tuple(self.overrides.get("depths", get_variant(self.name).depths))

    def create(self, rngs: nnx.Rngs | None = None) -> Model:
        """Builds the model with random initial weights; raises InputError as `create_model`."""
        return create_model(self.name, self.num_classes, rngs, **self.overrides)

    def initial(self, rngs: nnx.Rngs | None = None) -> nnx.Module:
        """The model that `create` builds, with an `initial.Drawing` in place of each array."""
        with initial.postponed():
            return self.create(rngs)

    def abstract(self) -> nnx.Module:
        """The model with shapes in place of arrays; of all that ask for it the same."""
        overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in self.overrides.items()}
        return _abstract(self.name, self.num_classes, tuple(sorted(overrides.items())))

    def abstract_params(self) -> Any:
        """The tree of parameters as `jax.ShapeDtypeStruct`; nothing is computed."""
        return params_of(self.abstract())

    def abstract_batch_stats(self) -> Any:
        """The tree of batch statistics as `jax.ShapeDtypeStruct`; empty for most models."""
        return batch_stats_of(self.abstract())

    def initial_batch_stats(self) -> Any:
        """The tree of batch statistics before any batch, NumPy arrays; the parameters' are not."""
        return jax.tree.map(lambda drawing: drawing.values(), batch_stats_of(self.initial()))

    def kernel_dtypes(self) -> dict[str, Any]:
        """`kernel_dtypes` of the model."""
        return kernel_dtypes(self.abstract())

    def with_params(self, params: Any, batch_stats: Any = None) -> Model:
        """The model with given parameters, and batch statistics if it has any."""
        graph, *_ = nnx.split(self.abstract(), nnx.Param, nnx.BatchStat)
        return nnx.merge(graph, params, batch_stats or {})

    def function(self) -> Callable[..., Array]:
        """The model as a pure function (params, images, key=None) -> logits."""
        graph, _ = nnx.split(self.abstract())

        def apply(params: Any, images: Array, key: Array | None = None) -> Array:
            return nnx.merge(graph, params)(images, key=key)

        return apply

    def function_with_batch_stats(self) -> Callable[..., tuple[Any, Any]]:
        """The model as a pure function of its statistics too.

        Returns:
          (params, batch_stats, images, key=None, **others) -> (what the model returns, the batch
          statistics after it), the latter as they were unless there is a `key`.
        """
        graph, *_ = nnx.split(self.abstract(), nnx.Param, nnx.BatchStat)

        def apply(
            params: Any, batch_stats: Any, images: Array, key: Array | None = None, **others: Any
        ) -> tuple[Any, Any]:
            model = nnx.merge(graph, params, batch_stats)
            outputs = model(images, key=key, **others)
            return outputs, batch_stats_of(model)

        return apply


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What a checkpoint says of its model: all that a reader of the weights needs.

    Attributes:
      spec: the model.
      preprocessing: how images are fed to it.
      class_names: one for each class, in the order of the logits; None: unknown.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Nested dictionaries that JSON can hold."""
        preprocessing = {
            field.name: getattr(self.preprocessing, field.name)
            for field in dataclasses.fields(Preprocessing)
        }
        return {
            "model": {"name": self.spec.name, "overrides": dict(self.spec.overrides)},
            "num_classes": self.spec.num_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "preprocessing": preprocessing,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelDescription":
        """The opposite of `to_json`; other keys of `values` are left alone."""
        names = values["class_names"]
        preprocessing = dict(values["preprocessing"])
        for key in ("mean", "std"):
            preprocessing[key] = tuple(preprocessing[key])
        return cls(
            spec=ModelSpec(num_classes=values["num_classes"], **values["model"]),
            preprocessing=Preprocessing(**preprocessing),
            class_names=None if names is None else tuple(names),
        )
