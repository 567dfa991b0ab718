"""A page of examples to look at: image, truth and prediction side by side."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation.colours import page, palette
from convnext_jax.segmentation.predictor import Predictor, Segmentation

_EXAMPLES = 12


def draw_page(
    path: Path, model: ModelDescription, params: Any, batch_stats: Any, source: Any
) -> None:
    """Draws some examples of a dataset, spread evenly over it.

    Args:
      path: of the PNG, which appears when it is complete.
      model: described with its preprocessing.
      params: its parameters.
      batch_stats: its statistics.
      source: images and their labels.
    """
    places = np.linspace(0, len(source) - 1, min(_EXAMPLES, len(source))).round().astype(int)
    examples = [source[int(place)] for place in places]
    found = Predictor(model, params, batch_stats).predictions(image for image, _ in examples)
    rows = [
        (seen.image, truth, seen.labels)
        for seen, (_, truth) in zip(found, examples, strict=True)
        if isinstance(seen, Segmentation)
    ]
    sheet = page(rows, palette(model.spec.num_classes, model.class_names))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sheet.save(part, "PNG")
    part.replace(path)
