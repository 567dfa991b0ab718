"""A page of examples to look at: what is there and what was found, side by side."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.data.coco_tools import bitmap
from convnext_jax.data.instances import Objects, ObjectSource
from convnext_jax.detection.drawing import draw, palette, side_by_side
from convnext_jax.detection.outputs import name_of, picture
from convnext_jax.detection.pasting import Pasted
from convnext_jax.detection.predictor import Detected, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription

_EXAMPLES = 8


def draw_page(
    path: Path,
    model: ModelDescription,
    params: Any,
    batch_stats: Any,
    source: ObjectSource,
    **options: Any,
) -> None:
    """Draws some examples of a dataset, spread evenly over it; those that can be read.

    Args:
      path: of the PNG, which appears when it is complete.
      model: described with its preprocessing.
      params: its parameters.
      batch_stats: its statistics.
      source: images and their objects.
      **options: of `Predictor`.

    Raises:
      OSError: it cannot be written.
    """
    places = np.linspace(0, len(source) - 1, min(_EXAMPLES, len(source))).round().astype(int)
    examples = []
    for place in places.tolist():
        # The run has been told what to do about those that cannot be read, and has said so.
        with contextlib.suppress(InputError):
            examples.append(source[place])
    names, colours = model.class_names, palette(model.spec.num_classes)
    predictor = Predictor(model, params, batch_stats, **options)
    rows = []
    found = predictor.predictions(image for image, _ in examples)
    for seen, (image, truth) in zip(found, examples, strict=True):
        if isinstance(seen, Detected):
            there = _true_picture(image, truth, names, colours)
            rows.append((there, picture(seen, names, colours)))
    if rows:
        file = io.BytesIO()
        side_by_side(rows).save(file, "PNG")
        write_at_once(path, file.getvalue())


def _true_picture(
    image: Image.Image, truth: Objects, class_names: tuple[str, ...] | None, colours: np.ndarray
) -> Image.Image:
    names = [
        name_of(int(label), class_names) + (" (crowd)" if crowd else "")
        for label, crowd in zip(truth.labels, truth.is_crowd, strict=True)
    ]
    masks = [Pasted(0, 0, bitmap(rle)) for rle in truth.masks]
    return draw(image, truth.boxes, names, colours[truth.labels], masks=masks)
