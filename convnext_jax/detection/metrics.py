"""The results of an evaluation: average precisions of boxes and masks."""

from collections.abc import Iterable, Mapping
from typing import Any

from convnext_jax.data.coco_metrics import average_precisions
from convnext_jax.detection.records import Record, coco_detections


def results(
    ground_truth: Mapping[str, Any],
    kept: Iterable[Record],
    *,
    per_class: bool = False,
    output: bool = False,
) -> dict[str, Any]:
    """COCO's average precisions over the images whose detections were kept.

    Args:
      ground_truth: as in COCO's files, with `images` in the order of the source and `categories` in
        that of the labels.
      kept: records of all evaluated images, those without detections too.
      per_class: also give `box_ap_by_class` and `mask_ap_by_class`.
      output: also give `detections`, as files of results have them.

    Returns:
      Fractions by name, as `data.coco_metrics.average_precisions` gives them.

    Raises:
      InputError: as `average_precisions` and `records.coco_detections`.
      RunError: an image is there twice.
    """
    # Equal scores rank by the place of their images, whichever process saw them.
    kept = sorted(kept, key=lambda record: record["index"])
    evaluated, detections = coco_detections(ground_truth, kept)
    found = average_precisions(evaluated, detections)
    if not per_class:
        found = {name: value for name, value in found.items() if not name.endswith("_by_class")}
    return found | ({"detections": detections} if output else {})


def words(found: Mapping[str, Any]) -> str:
    """Results as people read them: percent."""
    return (
        "box AP {box_ap:.1%} (at 0.5 {box_ap50:.1%}, at 0.75 {box_ap75:.1%}),"
        " mask AP {mask_ap:.1%} (at 0.5 {mask_ap50:.1%}, at 0.75 {mask_ap75:.1%})"
    ).format_map(found)
