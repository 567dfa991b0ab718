"""Which format a file's tensors are in, and which model they belong to."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from convnext_jax import tree
from convnext_jax.convert import heads
from convnext_jax.convert.formats import DIALECTS, FORMATS, Dialect
from convnext_jax.convert.keys import our_names
from convnext_jax.errors import InputError
from convnext_jax.models.registry import backbone_name, get_variant
from convnext_jax.models.spec import ModelSpec
from convnext_jax.models.variants import CLASSIFIERS, ROADMAP, VARIANTS, Variant

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Structure:
    """What names and shapes of parameters say of a model; the fields' words are the variants'."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    grn: bool
    layer_scale: bool
    stem: tuple[int, ...]  # width of each of its convolutions
    isotropic: bool
    resnet: bool
    norm_bias: bool
    head_norm_first: bool
    head_hidden_size: int | None
    num_classes: int
    in_channels: int
    heads: str  # a key of `heads.TITLES`: what stands over the backbone
    # Of that; 0: it has none.
    decoder_channels: int
    auxiliary_channels: int
    fpn_channels: int
    head_features: int


# What a published model may differ in from its variant, and is told by overrides.
_OVERRIDABLE = ("kernel_sizes", "layer_scale")
# Not of the backbone, which is what a model is recognised by.
_FREE = ("num_classes", "in_channels", "heads", *heads.WIDTHS)

# Those that files of others may hold.
_KNOWN = CLASSIFIERS | {n: row for n, row in ROADMAP.items() if n.endswith("_original")}

# Names in detectors of torchvision.
_OF_TORCHVISION = ("roi_heads.", "rpn.head.", "backbone.body.")


def recognise_format(names: Iterable[str], format: str | None = None) -> Dialect:
    """Finds the dialect of a file.

    Args:
      names: of its tensors.
      format: one of `FORMATS` to choose the dialect from; None: any.

    Raises:
      InputError: there is no such format, or the names are in none of its dialects.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"`--format` (={format}) must be one of {', '.join(FORMATS)}")
    names = list(names)
    for dialect in DIALECTS:
        if format is not None and dialect.format != format:
            continue
        if any(name in dialect.absent for name in names):
            continue
        if all(any(name.startswith(start) for name in names) for start in dialect.present):
            return dialect
    if any(name.startswith(_OF_TORCHVISION) for name in names):
        raise InputError(
            "the file holds a detector of torchvision's, whose anchors, features of regions and"
            " order of classes are others; of detectors only mmdetection's can be read"
        )
    wanted = f"the format {format}" if format else f"any of the formats {', '.join(FORMATS)}"
    raise InputError(
        f"the {len(names)} tensors are not those of a ConvNeXt in {wanted}; the first are"
        f" {', '.join(f'`{name}`' for name in names[:3])}"
    )


def structure_of(shapes: Shapes) -> Structure:
    """Reads the structure off our names and shapes; those it needs must be there.

    Raises:
      InputError: there are no blocks, no stem, or no classifier in the heads over a backbone.
    """
    over = heads.architecture_of(shapes)
    if over:
        shapes = {name.removeprefix("backbone/"): shape for name, shape in shapes.items()}
    isotropic = any(name.startswith("blocks/") for name in shapes)
    # Of a stage the 1x1 convolutions at the end of its blocks stand for its depthwise ones there.
    resnet = any(name.endswith("/conv3/kernel") for name in shapes)
    marked = ["conv3", "kernel"] if resnet else ["dwconv", "kernel"]
    blocks: dict[int, list[tuple[int, ...]]] = {}  # of each stage, the depthwise kernels
    stem: dict[int, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = name.split("/")
        if len(shape) != 4:  # No convolution, or a damaged one, which `keys.apply` will report.
            continue
        if parts[-2:] == marked:
            blocks.setdefault(0 if isotropic else int(parts[1]), []).append(shape)
        elif parts[-1] == "kernel" and parts[:2] == ["downsample_layers", "0"]:
            stem[int(parts[2])] = shape
        elif name == "stem/kernel":
            stem[0] = shape
    if not stem or sorted(blocks) != list(range(len(blocks))):
        raise InputError("the file holds only parts of a ConvNeXt: stages or the stem are missing")
    first_conv = stem[min(stem)]
    hidden, head = (
        shape if len(shape) == 2 else None
        for shape in (shapes.get(f"{name}/kernel", ()) for name in ("pre_logits", "head"))
    )
    return Structure(
        depths=tuple(len(blocks[stage]) for stage in sorted(blocks)),
        dims=tuple(blocks[stage][0][3] for stage in sorted(blocks)),
        kernel_sizes=tuple(blocks[stage][0][0] for stage in sorted(blocks)),
        grn=any("/grn/" in name for name in shapes),
        layer_scale=any(n.endswith("/gamma") and "/grn/" not in n for n in shapes),
        stem=tuple(stem[i][3] for i in sorted(stem)),
        isotropic=isotropic,
        resnet=resnet,
        norm_bias=any(name.endswith(("/0/norm/bias", "/0/norm1/bias")) for name in shapes),
        head_norm_first="norm_pre/scale" in shapes,
        head_hidden_size=hidden[1] if hidden else None,
        num_classes=heads.count_classes(over, shapes) if over else head[1] if head else 0,
        in_channels=first_conv[2],
        heads=over,
        **heads.widths(shapes),
    )


def source_structure(dialect: Dialect, shapes: Shapes) -> Structure:
    """Reads the structure off a file's names and shapes.

    Raises:
      InputError: as `structure_of`.
    """
    ours = {}
    for theirs, name in our_names(dialect.rows, shapes).items():
        shape = shapes[theirs]
        if name.endswith("/kernel"):
            shape = shape[2:4] + shape[1::-1] if len(shape) == 4 else shape[::-1]
        ours[name] = shape
    return structure_of(ours)


def parameter_shapes(name: str, num_classes: int, overrides: Mapping[str, Any]) -> dict[Any, Any]:
    """The tree of a model's parameters, as `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
      InputError: if the name or an override is unknown.
    """
    return _model_shapes(name, num_classes, overrides)[0]


def batch_stats_shapes(name: str, num_classes: int, overrides: Mapping[str, Any]) -> dict[Any, Any]:
    """Likewise the tree of its batch statistics; empty for most models."""
    return _model_shapes(name, num_classes, overrides)[1]


def array_shapes(name: str, num_classes: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Both of them, by the names of their leaves."""
    params, batch_stats = _model_shapes(name, num_classes, overrides)
    return tree.flatten_with_names(params) | tree.flatten_with_names(batch_stats)


def _model_shapes(
    name: str, num_classes: int, overrides: Mapping[str, Any]
) -> tuple[dict[Any, Any], dict[Any, Any]]:
    spec = ModelSpec(name, num_classes, overrides)
    return spec.abstract_params(), spec.abstract_batch_stats()


def flat_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a tree's leaves."""
    return {name: tuple(x.shape) for name, x in tree.flatten_with_names(shapes).items()}


@functools.cache
def _structure_of_variant(name: str) -> Structure:
    return structure_of(flat_shapes(parameter_shapes(name, get_variant(name).num_classes, {})))


def infer_model(found: Structure) -> tuple[str, dict[str, Any]]:
    """Finds the variant that a structure belongs to; under other heads by its backbone.

    Returns:
      The variant's name, and the overrides by which the model differs from it: `kernel_size`,
      `layer_scale_init`, and the widths of other heads.

    Raises:
      InputError: no variant has these stages, or several fit; the message names the closest, or
        all of them.
    """
    near = [
        name
        for name, variant in _KNOWN.items()
        if (tuple(variant.depths), tuple(variant.dims)) == (found.depths, found.dims)
    ]
    differences = {name: _differences(found, _structure_of_variant(name)) for name in near}
    exact = [name for name in near if not differences[name]]
    fits = exact or [name for name in near if set(differences[name]) <= set(_OVERRIDABLE)]
    if len(fits) == 1:
        name = f"{found.heads}_{fits[0]}" if found.heads else fits[0]
        return name, overrides_for(found, name)
    if fits:
        raise InputError(
            f"the file fits the models {', '.join(fits)} alike; choose one with `--model`"
        )
    described = f"depths {found.depths} and dims {found.dims}"
    if not near:
        name = min(_KNOWN, key=lambda name: _distance(found, _KNOWN[name]))
        variant = _KNOWN[name]
        raise InputError(
            f"no model has {described}; the closest is {name} with {variant.depths} and"
            f" {variant.dims}"
        )
    name = min(near, key=lambda name: len(differences[name]))
    words = ", ".join(
        f"{field} {getattr(found, field)} instead of {getattr(_structure_of_variant(name), field)}"
        for field in differences[name]
    )
    raise InputError(f"no model with {described} is like this file; the closest, {name}: {words}")


def overrides_for(found: Structure, name: str) -> dict[str, Any]:
    """The overrides that give a variant the file's kernel sizes, layer scale and widths."""
    variant = get_variant(name)
    different = _differences(found, _structure_of_variant(name))
    overrides: dict[str, Any] = {}
    if "kernel_sizes" in different and len(found.kernel_sizes) == len(variant.depths):
        same = len(set(found.kernel_sizes)) == 1
        overrides["kernel_size"] = found.kernel_sizes[0] if same else found.kernel_sizes
    if "layer_scale" in different:
        overrides["layer_scale_init"] = 1e-6 if found.layer_scale else None
    for width in heads.WIDTHS:
        seen = getattr(found, width)
        if seen and seen != getattr(_structure_of_variant(name), width):
            overrides[width] = seen
    return overrides


def require_kind(found: Structure, name: str) -> None:
    """Raises an InputError if a user chose a model with other heads than are there."""
    architecture, backbone = get_variant(name).architecture, backbone_name(name)
    chosen = "" if backbone is None else architecture
    if chosen == found.heads:
        return
    backbone = name if backbone is None else backbone
    other = f"{found.heads}_{backbone}" if found.heads else backbone
    meant = f" (`{other}`, perhaps)" if other in VARIANTS else ""
    is_there = f"a {heads.TITLES[found.heads]}"
    is_there += ", a backbone and its heads" if found.heads else f", no {heads.TITLES[chosen]}"
    raise InputError(f"`--model` (={name}) does not fit: the file holds {is_there}{meant}")


def _differences(one: Structure, other: Structure) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(Structure)
        if field.name not in _FREE and getattr(one, field.name) != getattr(other, field.name)
    ]


def _distance(found: Structure, variant: Variant) -> float:
    if len(found.depths) != len(variant.depths):
        return float("inf")
    depths = sum(abs(a - b) for a, b in zip(found.depths, variant.depths, strict=True))
    dims = sum(abs(a - b) / b for a, b in zip(found.dims, variant.dims, strict=True))
    return depths + 10 * dims + 0.1 * (found.grn != variant.grn)  # V1 or V2 breaks ties.
