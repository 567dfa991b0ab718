"""A page of examples to look at: what is there and what was found, side by side."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.detection.drawing import draw, palette, side_by_side
from convnext_jax.detection.outputs import name_of, picture
from convnext_jax.detection.predictor import Detected, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription

_EXAMPLES = 8


def draw_page(
    path: Path,
    model: ModelDescription,
    params: Any,
    batch_stats: Any,
    source: Any,
    **options: Any,
) -> None:
    """Draws some examples of a dataset, spread evenly over it; those that can be read.

    Args:
      path: of the PNG, which appears when it is complete.
      model: described with its preprocessing.
      params: its parameters.
      batch_stats: its statistics.
      source: images in RGB and their objects, with `boxes`, float [n, 4] in pixels, and
        `labels`, int [n].
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
    for seen, (_, truth) in zip(found, examples, strict=True):
        if isinstance(seen, Detected):
            named = [name_of(int(label), names) for label in truth.labels]
            there = draw(seen.image, truth.boxes, named, colours[truth.labels])
            rows.append((there, picture(seen, names, colours)))
    if rows:
        file = io.BytesIO()
        side_by_side(rows).save(file, "PNG")
        write_at_once(path, file.getvalue())
