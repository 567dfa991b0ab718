"""What is written of a segmented image: two pictures and the areas of its classes."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax.errors import InputError, RunError
from convnext_jax.segmentation.colours import label_picture, overlay
from convnext_jax.segmentation.predictor import Segmentation

PICTURE = "_labels.png"
_ENDINGS = (PICTURE, "_overlay.png", ".json")


def output_names(
    images: Sequence[str], places: Sequence[str], ending: str = PICTURE, flag: str = "--output"
) -> list[str]:
    """Names of images' outputs, without endings: their paths in the folder that was named.

    Args:
      images: paths, in the order of `places` and of what is in them.
      places: files and folders that a user named.
      ending: of an output, for the message.
      flag: by which the user chose where they go, likewise.

    Raises:
      InputError: two images would have the same outputs.
    """
    names: dict[str, str] = {}
    for image in images:
        path = os.path.abspath(image)
        folders = [os.path.abspath(place) for place in places if os.path.isdir(place)]
        inside = [folder for folder in folders if os.path.commonpath([folder, path]) == folder]
        start = max(inside, key=len, default=os.path.dirname(path))
        name = os.path.splitext(os.path.relpath(path, start))[0]
        if name in names:
            raise InputError(
                f"{names[name]} and {image} would both be written to {name}{ending}: give"
                f" them one at a time, with an `{flag}` each"
            )
        names[name] = image
    return list(names)


def areas(labels: np.ndarray, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The classes in an image, the largest first: `label`, `name`, `pixels` and `share` of each."""
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")
    return [
        {
            "label": int(label),
            "name": class_names[label] if class_names else str(label),
            "pixels": int(counts[label]),
            "share": float(counts[label] / labels.size),
        }
        for label in order
        if counts[label]
    ]


def write_outputs(
    folder: Path, name: str, found: Segmentation, colours: np.ndarray, described: dict[str, Any]
) -> None:
    """Writes NAME_labels.png, NAME_overlay.png and NAME.json, each at once.

    Args:
      folder: to write below; folders in `name` are made.
      name: of the outputs, without endings.
      found: what was found.
      colours: uint8 [classes, 3].
      described: what the JSON file holds.

    Raises:
      RunError: a file cannot be written; nothing incomplete is left.
    """
    labels = label_picture(found.labels, colours)
    pictures = (labels, overlay(found.image, found.labels, colours))
    text = json.dumps(described, indent=2) + "\n"
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for ending, picture in zip(_ENDINGS, pictures, strict=False):
            write_at_once(folder / f"{name}{ending}", functools.partial(picture.save, format="PNG"))
        write_at_once(folder / f"{name}{_ENDINGS[-1]}", lambda part: part.write_text(text, "utf-8"))
    except OSError as error:
        raise RunError(f"writing below {folder} failed: {error}") from error


def write_at_once(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside `path`, which gets its name when it is complete; raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
