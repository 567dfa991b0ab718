"""The results of an evaluation: average precisions of boxes and masks."""

from collections.abc import Iterable, Mapping
from typing import Any

from convnext_jax.data.coco_metrics import average_precisions
from convnext_jax.detection.records import Record, coco_detections


def results(
    ground_truth: Mapping[str, Any], kept: Iterable[Record], *, per_class: bool = False
) -> dict[str, Any]:
    """COCO's average precisions over the images whose detections were kept.

    Args:
      ground_truth: as in COCO's files, with `images` in the order of the source and `categories` in
        that of the labels.
      kept: records of all evaluated images, those without detections too.
      per_class: also give `box_ap_by_class` and `mask_ap_by_class`.

    Returns:
      Fractions by name, as `data.coco_metrics.average_precisions` gives them.

    Raises:
      InputError: as `average_precisions` and `records.coco_detections`.
      RunError: an image is there twice.
    """
    found = average_precisions(*coco_detections(ground_truth, kept))
    return found if per_class else {k: v for k, v in found.items() if not k.endswith("_by_class")}


def words(found: Mapping[str, Any]) -> str:
    """Results as people read them: percent."""
    return (
        "box AP {box_ap:.1%} (at 0.5 {box_ap50:.1%}, at 0.75 {box_ap75:.1%}),"
        " mask AP {mask_ap:.1%} (at 0.5 {mask_ap50:.1%}, at 0.75 {mask_ap75:.1%})"
    ).format_map(found)
