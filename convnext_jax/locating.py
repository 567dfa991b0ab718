"""What models that segment or detect write of images: `python -m convnext_jax.predict --output`.

A model that segments writes of each image a PNG of labels, one to look at, and the areas of its
classes as JSON; one that detects a PNG to look at, and boxes and masks as JSON.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convnext_jax.constants import PARAMETERS
from convnext_jax.data import ade20k_classes, coco_classes
from convnext_jax.detection import outputs as of_objects
from convnext_jax.detection import predictor as detector
from convnext_jax.detection.drawing import palette as colours_of_objects
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.progress import progress_bar
from convnext_jax.segmentation import outputs as of_masks
from convnext_jax.segmentation import predictor as segmenter
from convnext_jax.segmentation.colours import palette as colours_of_masks

# (its name without an ending, what was found in an image, what is known of it) -> the row of JSON,
# and lines to print.
Write = Callable[[str, Any, dict[str, Any]], tuple[dict[str, Any], list[str]]]
# Published weights of so many classes are of these.
_KNOWN = {
    "segmentation": ade20k_classes.CLASSES,
    "detection": coco_classes.CLASSES,
}


def locate(
    arguments: argparse.Namespace,
    images: list[str],
    source: str,
    which: str,
    description: ModelDescription,
    read: Callable[[], dict[str, Any]],
) -> bool:
    """Writes what a model that segments or detects finds in each image.

    Args:
      arguments: of `predict`.
      images: paths.
      source: of the weights, for messages.
      which: of its parameters they are, a key of `PARAMETERS`.
      description: the model.
      read: gives its variables, as its predictor takes them.

    Returns:
      Whether all images could be used.

    Raises:
      InputError: the arguments cannot be used.
      RunError: a file cannot be written.
    """
    task = get_variant(description.spec.name).task
    verb = {"segmentation": "segments images", "detection": "detects objects"}[task]
    if arguments.output is None:
        raise InputError(f"`--output` must be the folder to write to: {source} {verb}")
    for flag, given in (("--cam", arguments.cam), ("--csv", arguments.csv)):
        if given is not None:
            raise InputError(f"`{flag}` is for classifiers, and {source} {verb}")
    if arguments.least_score is not None and task != "detection":
        raise InputError(f"`--least_score` is for models that detect, and {source} {verb}")
    folder = Path(arguments.output)
    ending = of_objects.PICTURE if task == "detection" else of_masks.PICTURE
    names = of_masks.output_names(images, arguments.images, ending)
    writable_folder("--output", folder)
    class_names = description.class_names
    if class_names is None and description.spec.num_classes == len(_KNOWN[task]):
        class_names = _KNOWN[task]
    classes = description.spec.num_classes
    write: Write
    predictor: Any
    if task == "segmentation":
        colours = colours_of_masks(classes, class_names)
        write = functools.partial(_write_areas, folder, class_names, colours, arguments.top)
        predictor = segmenter.Predictor(description, **read())
    else:
        of_objects.require_apart(folder, names, images)
        least = {} if arguments.least_score is None else {"least_score": arguments.least_score}
        model: Any = description.spec.abstract()
        threshold = model.roi_head.selection.score_threshold
        if least.get("least_score", 1) < threshold:
            raise InputError(
                f"`--least_score` (={arguments.least_score}) must be at least {threshold:g}, below"
                f" which {source} finds nothing"
            )
        colours = colours_of_objects(classes)
        write = functools.partial(_write_objects, folder, class_names, colours, arguments.top)
        predictor = detector.Predictor(description, **read(), **least)
    if not arguments.json:
        print(f"{description.spec.name}, {source} ({PARAMETERS[which]}):")
    failures = 0
    with progress_bar("looking at", len(images), "images", beside_output=True) as bar:
        for path, name, found in zip(images, names, predictor.predictions(images), strict=True):
            if isinstance(found, segmenter.Failure | detector.Failure):
                bar.write(f"error: {found.error}", file=sys.stderr)
                failures += 1
                row: dict[str, Any] = {"image": path, "error": found.error}
            else:
                row, lines = write(name, found, {"image": path, "parameters": which})
                if not arguments.json:
                    print("\n".join([path, *lines]), flush=True)
            if arguments.json:
                print(json.dumps(row), flush=True)
            bar.update()
    return not failures


def _write_areas(
    folder: Path,
    class_names: Any,
    colours: Any,
    top: int,
    name: str,
    found: segmenter.Segmentation,
    known: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    classes = of_masks.areas(found.labels, class_names)
    size = {"height": found.image.height, "width": found.image.width}
    row = {"image": known["image"], **size, "classes": classes} | known
    of_masks.write_outputs(folder, name, found, colours, row)
    return row, [f"  {each['share']:7.2%}  {each['name']}" for each in classes[:top]]


def _write_objects(
    folder: Path,
    class_names: Any,
    colours: Any,
    top: int,
    name: str,
    found: detector.Detected,
    known: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    row = {"image": known["image"], **of_objects.described(found, class_names)} | known
    of_objects.write_outputs(folder, name, found, class_names, colours, row)
    lines = []
    for each in row["detections"][:top]:
        x1, y1, x2, y2 = each["box"]
        place = f"{x1:.0f}, {y1:.0f} to {x2:.0f}, {y2:.0f}"
        lines.append(f"  {each['score']:7.2%}  {each['name']} at {place}")
    return row, lines


def writable_folder(flag: str, folder: Path) -> None:
    """Makes a folder; raises InputError unless files can be put there."""
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"`{flag}` (={folder}) must be a folder that can be written: {error}"
        ) from error
