"""Weights of another implementation as parameters of a model of this one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from convnext_jax import tree
from convnext_jax.convert import (
    config_text,
    detector_settings,
    published,
    recognise,
    surgery,
    upernet_settings,
)
from convnext_jax.convert.formats import Dialect
from convnext_jax.convert.heads import DETECTORS
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
      batch_stats: the tree of batch statistics, likewise; empty for most models.
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
    batch_stats: dict[Any, Any]
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
        such as `depths`; kernel size, layer scale and widths of heads are seen from the shapes.
      num_classes: asks for an untrained head for so many classes (of what segments or detects, for
        untrained last layers of all heads); None, or the file's number: the file's head.
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
    declared = published.declared_model(source.settings, found.depths, found.dims)
    if model is None and declared is not None:
        model, seen = declared[0], recognise.overrides_for(found, declared[0]) | declared[1]
    elif model is None:
        model, seen = recognise.infer_model(found)
    else:
        recognise.require_kind(found, model)
        seen = recognise.overrides_for(found, model)
    said = detector_settings.Said({}, [])
    if found.heads in DETECTORS:
        said = detector_settings.read_config(source.settings, model)
    overrides = {**seen, **said.overrides, **overrides}
    if found.heads == "upernet":
        upernet_settings.check(source.settings, model)
    elif not found.heads:
        published.check_settings(source.settings, model, overrides)

    arrays, notes = _arrays(source, dialect, found, model, overrides)
    arrays, changes = _changed(arrays, found, num_classes, in_channels)
    if num_classes is None:
        num_classes = found.num_classes
    if in_channels is None:
        in_channels = found.in_channels
    if in_channels != 3:
        overrides["in_channels"] = in_channels

    which = model, num_classes, overrides
    difference = tree.first_difference(arrays, recognise.array_shapes(*which))
    if difference is not None:
        raise InputError(f"the result is no {model}: {difference}")

    def filled(shapes: dict[Any, Any]) -> dict[Any, Any]:
        return tree.map_with_names(lambda name, _: arrays[name], shapes)

    about = _about_classifier
    if found.heads:
        about = _about_detector if found.heads in DETECTORS else _about_upernet
    licence, preprocessing, names, remarks = about(source, dialect, found, model)
    return Converted(
        model_name=model,
        num_classes=num_classes,
        overrides=overrides,
        params=filled(recognise.parameter_shapes(*which)),
        batch_stats=filled(recognise.batch_stats_shapes(*which)),
        parameters=source.parameters,
        format=dialect.format,
        source=source.name,
        sha256=source.sha256,
        licence=licence,
        preprocessing=preprocessing,
        class_names=names if num_classes == found.num_classes else None,
        notes=(*notes, *changes, *remarks, *said.notes),
    )


# Licence, preprocessing, names of classes, and sentences on what was guessed.
_About = tuple[str | None, Preprocessing, tuple[str, ...] | None, list[str]]


def _about_classifier(
    source: Source, dialect: Dialect, found: recognise.Structure, model: str
) -> _About:
    known = published.find_published(source.name, model, found.num_classes)
    return (
        published.licence_of(known, dialect, source.settings),
        published.preprocessing_of(model, known, dialect, source.settings, source.name),
        published.class_names_of(source.settings, found.num_classes),
        [],
    )


def _about_upernet(
    source: Source, dialect: Dialect, found: recognise.Structure, model: str
) -> _About:
    which = source.name, model, found.num_classes
    preprocessing, remarks = upernet_settings.preprocessing_of(*which, dialect, source.settings)
    names = config_text.class_names_of(source.settings, found.num_classes)
    return upernet_settings.licence_of(*which), preprocessing, names, remarks


def _about_detector(
    source: Source, dialect: Dialect, found: recognise.Structure, model: str
) -> _About:
    which = source.name, model, found.num_classes
    preprocessing, remarks = detector_settings.preprocessing_of(*which, dialect, source.settings)
    names = config_text.class_names_of(source.settings, found.num_classes)
    return detector_settings.licence_of(*which), preprocessing, names, remarks


def _changed(
    arrays: dict[str, np.ndarray],
    found: recognise.Structure,
    num_classes: int | None,
    in_channels: int | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays with what was asked to be other than in the file, and sentences on that."""
    notes = []
    if num_classes is not None and num_classes != found.num_classes:
        if found.heads:
            arrays = surgery.new_classifiers(arrays, num_classes)
        else:
            width = found.head_hidden_size or found.dims[-1]
            arrays = surgery.new_head(arrays, width, num_classes)
        notes.append(
            f"as asked, the head for {found.num_classes} classes gave way to an untrained one for"
            f" {num_classes}"
        )
    if in_channels is not None and in_channels != found.in_channels:
        kernel = surgery.first_kernel(arrays)
        arrays[kernel] = surgery.other_channels(arrays[kernel], in_channels)
        notes.append(
            f"as asked, the first convolution, of {found.in_channels} channels, now takes"
            f" {in_channels}"
        )
    return arrays, notes


def _arrays(
    source: Source,
    dialect: Dialect,
    found: recognise.Structure,
    model: str,
    overrides: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters and statistics of the model that the file is for, before any surgery."""
    shapes = recognise.flat_shapes(recognise.array_shapes(model, found.num_classes, overrides))
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
