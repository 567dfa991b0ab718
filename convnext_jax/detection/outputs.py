"""What is written of an image with detected objects: a picture to look at, and JSON."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.detection.drawing import draw
from convnext_jax.detection.pasting import encode
from convnext_jax.detection.predictor import Detected
from convnext_jax.errors import InputError, RunError

# After the image's name, which `segmentation.outputs.output_names` makes.
PICTURE = "_detections.png"
JSON = ".json"


def described(found: Detected, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Detections as JSON has them, in pixels of the image.

    Returns:
      `height` and `width`; and `detections`, the surest first: `label`, `name`, `score`, `box` (x1,
      y1, x2, y2), `area` (pixels of the mask) and `mask` (COCO's compressed run lengths).
    """
    height, width = found.image.height, found.image.width
    rows = zip(found.labels, found.scores, found.boxes, found.masks, strict=True)
    return {
        "height": height,
        "width": width,
        "detections": [
            {
                "label": int(label),
                "name": name_of(int(label), class_names),
                "score": float(str(score)),
                "box": [float(str(value)) for value in box],
                "area": int(mask.bitmap.sum()),
                "mask": encode(mask, height, width),
            }
            for label, score, box, mask in rows
        ],
    }


def picture(found: Detected, class_names: Sequence[str] | None, colours: np.ndarray) -> Image.Image:
    """The image with what was found in it; `colours`, uint8 [classes, 3]."""
    names = [name_of(int(label), class_names) for label in found.labels]
    return draw(
        found.image,
        found.boxes,
        names,
        colours[found.labels],
        scores=found.scores,
        masks=found.masks,
    )


def name_of(label: int, class_names: Sequence[str] | None) -> str:
    """The name of a class, or its number."""
    return class_names[label] if class_names else str(label)


def require_apart(folder: Path, names: Sequence[str], images: Sequence[str]) -> None:
    """Raises InputError if an output would take the place of an image that is to be read.

    Args:
      folder: to write below.
      names: of the outputs, without endings.
      images: paths.
    """
    read = {os.path.realpath(image): image for image in images}
    for name in names:
        for ending in (PICTURE, JSON):
            file = folder / f"{name}{ending}"
            if os.path.realpath(file) in read:
                raise InputError(
                    f"the image {read[os.path.realpath(file)]} would be overwritten by the output"
                    f" for {name}: choose another folder, or leave it out"
                )


def write_outputs(
    folder: Path,
    name: str,
    found: Detected,
    class_names: Sequence[str] | None,
    colours: np.ndarray,
    row: dict[str, Any],
) -> None:
    """Writes NAME_detections.png and NAME.json, each at once.

    Args:
      folder: to write below; folders in `name` are made.
      name: of the outputs, without endings.
      found: what was found.
      class_names: by label; None: unknown.
      colours: uint8 [classes, 3].
      row: what the JSON file holds.

    Raises:
      RunError: a file cannot be written; what has one of the names is whole.
    """
    file = io.BytesIO()
    picture(found, class_names, colours).save(file, "PNG")
    text = json.dumps(row, indent=2) + "\n"
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_at_once(folder / f"{name}{PICTURE}", file.getvalue())
        write_at_once(folder / f"{name}{JSON}", text)
    except OSError as error:
        raise RunError(f"writing below {folder} failed: {error}") from error
