"""Weights of another implementation as parameters of a model of this one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from convnext_jax import tree
from convnext_jax.convert import published, recognise, surgery
from convnext_jax.convert.formats import Dialect
from convnext_jax.convert.keys import apply, key_map
from convnext_jax.convert.read import Source, read
from convnext_jax.errors import InputError
from convnext_jax.models.variants import Preprocessing


@dataclasses.dataclass(frozen=True)
class Converted:
    """Parameters, and all that a checkpoint says of them.

    Attributes:
      model_name: what `create_model` is given.
      num_classes: the same; 0: there is no head.
      overrides: the same: in what the model differs from the variant.
      params: the tree of parameters, float32 NumPy arrays.
      parameters: which of the file's they are, see `read.Source.parameters`.
      format: what the file was recognised as.
      source: file, folder, repository or URL, as it was given.
      sha256: of each file read, by its name.
      licence: of the weights, SPDX where there is such a name; None: unknown.
      preprocessing: how images are fed to the model.
      class_names: one for each class, or None.
      notes: sentences on what is not as in the file.
    """

    model_name: str
    num_classes: int
    overrides: dict[str, Any]
    params: dict[Any, Any]
    parameters: str
    format: str
    source: str
    sha256: dict[str, str]
    licence: str | None
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def load(
    location: str,
    *,
    format: str | None = None,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    ema: bool | None = None,
) -> Converted:
    """Reads weights, and accounts for every tensor of the file and every parameter of the model.

    Float16 and bfloat16 become float32.

    Args:
      location: as `read.read` takes it.
      format: one of `formats.FORMATS`; None: recognised from the names.
      model: a name from `list_models()`; None: recognised from the shapes.
      overrides: keyword arguments of `create_model` by which the model differs from its variant,
        such as `depths`; kernel size and layer scale are seen from the shapes.
      num_classes: asks for an untrained head for so many classes; None, or the file's number:
        the file's head.
      in_channels: asks for a first convolution for so many channels, made from the file's.
      ema: as `read.read` takes it.

    Raises:
      InputError: the file cannot be read, or it and the model do not fit; one message lists all
        tensors that do not.
    """
    for name, value, least in (("num_classes", num_classes, 0), ("in_channels", in_channels, 1)):
        if value is not None and value < least:
            raise InputError(f"`{name}` (={value}) must be at least {least}")
    source = read(location, ema)
    try:
        return _convert(source, format, model, dict(overrides or {}), num_classes, in_channels)
    except InputError as error:
        raise InputError(f"{location}: {error}") from error


def _convert(
    source: Source,
    format: str | None,
    model: str | None,
    overrides: dict[str, Any],
    num_classes: int | None,
    in_channels: int | None,
) -> Converted:
    dialect = recognise.recognise_format(source.tensors, format)
    found = recognise.source_structure(dialect, {n: t.shape for n, t in source.tensors.items()})
    if model is None:
        model, seen = recognise.infer_model(found)
    else:
        seen = recognise.overrides_for(found, model)
    overrides = {**seen, **overrides}
    published.check_settings(source.settings, model)

    arrays, notes = _arrays(source, dialect, found, model, overrides)
    if num_classes is not None and num_classes != found.num_classes:
        width = found.head_hidden_size or found.dims[-1]
        arrays = surgery.new_head(arrays, width, num_classes)
        notes.append(
            f"as asked, the head for {found.num_classes} classes gave way to an untrained one for"
            f" {num_classes}"
        )
    else:
        num_classes = found.num_classes
    if in_channels is not None and in_channels != found.in_channels:
        kernel = surgery.first_kernel(arrays)
        arrays[kernel] = surgery.other_channels(arrays[kernel], in_channels)
        notes.append(
            f"as asked, the first convolution, of {found.in_channels} channels, now takes"
            f" {in_channels}"
        )
    else:
        in_channels = found.in_channels
    if in_channels != 3:
        overrides["in_channels"] = in_channels

    shapes = recognise.parameter_shapes(model, num_classes, overrides)
    difference = tree.first_difference(arrays, tree.flatten_with_names(shapes))
    if difference is not None:
        raise InputError(f"the result is no {model}: {difference}")
    known = published.find_published(source.name, model, found.num_classes)
    names = published.class_names_of(source.settings, found.num_classes)
    return Converted(
        model_name=model,
        num_classes=num_classes,
        overrides=overrides,
        params=tree.map_with_names(lambda name, _: arrays[name], shapes),
        parameters=source.parameters,
        format=dialect.format,
        source=source.name,
        sha256=source.sha256,
        licence=published.licence_of(known, dialect, source.settings),
        preprocessing=published.preprocessing_of(model, known, dialect, source.settings),
        class_names=names if num_classes == found.num_classes else None,
        notes=tuple(notes),
    )


def _arrays(
    source: Source,
    dialect: Dialect,
    found: recognise.Structure,
    model: str,
    overrides: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters of the model that the file is for, before any surgery."""
    shapes = recognise.flat_shapes(recognise.parameter_shapes(model, found.num_classes, overrides))
    kernel = surgery.first_kernel(shapes)
    height, width, _, features = shapes[kernel]
    shapes[kernel] = (height, width, found.in_channels, features)
    wanted = {name: shape for name, shape in shapes.items() if name not in dialect.supplied}
    entries = key_map(dialect.rows, wanted)
    homeless = [f"`{name}` {shape}" for name, shape in wanted.items() if name not in entries]
    if homeless:
        raise InputError(
            f"the format {dialect.format} has no place for {', '.join(homeless)} of {model}"
        )
    arrays = apply(
        source.tensors,
        entries,
        droppable=dialect.droppable,
        duplicates=dialect.duplicates,
        what=f"the file, read as {model} in the format {dialect.name},",
    )
    notes = []
    for name, value in dialect.supplied.items():
        if name in shapes:
            arrays[name] = np.full(shapes[name], value, np.float32)
            notes.append(f"`{name}` is not in files of this kind ({dialect.name}); it is {value:g}")
    return arrays, notes
