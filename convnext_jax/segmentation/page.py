"""A page of examples to look at: image, truth and prediction side by side."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation.colours import page, palette
from convnext_jax.segmentation.outputs import write_at_once
from convnext_jax.segmentation.predictor import Predictor, Segmentation

_EXAMPLES = 12


def draw_page(
    path: Path, model: ModelDescription, params: Any, batch_stats: Any, source: Any
) -> None:
    """Draws some examples of a dataset, spread evenly over it; those that can be read.

    Args:
      path: of the PNG, which appears when it is complete.
      model: described with its preprocessing.
      params: its parameters.
      batch_stats: its statistics.
      source: images and their labels.

    Raises:
      OSError: it cannot be written.
    """
    places = np.linspace(0, len(source) - 1, min(_EXAMPLES, len(source))).round().astype(int)
    examples = []
    for place in places.tolist():
        # The run has been told what to do about those that cannot be read, and has said so.
        with contextlib.suppress(InputError):
            examples.append(source[place])
    found = Predictor(model, params, batch_stats).predictions(image for image, _ in examples)
    rows = [
        (seen.image, truth, seen.labels)
        for seen, (_, truth) in zip(found, examples, strict=True)
        if isinstance(seen, Segmentation)
    ]
    if rows:
        sheet = page(rows, palette(model.spec.num_classes, model.class_names))
        write_at_once(path, functools.partial(sheet.save, format="PNG"))
