"""What stands over a ConvNeXt, and what shapes of its parameters say of it."""

import re
from collections.abc import Iterable, Mapping

from convnext_jax.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

# By the variants' `architecture`; empty: nothing does, or a classifier's last layers.
TITLES = {
    "": "classifier",
    "upernet": "UPerNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
}
DETECTORS = ("mask_rcnn", "cascade_mask_rcnn")

_OF_UPERNET = ("decode_head/", "auxiliary_head/")
_OF_DETECTORS = ("neck/", "rpn_head/", "roi_head/")
# Where the number of classes is seen, and widths; of several the first that is there counts.
_SEGMENTED = tuple(f"{head}conv_seg/kernel" for head in _OF_UPERNET)
_CLASSIFIED = re.compile(r"roi_head/bbox_head(/\d+)?/fc_cls/kernel")
_WIDTHS = {
    "decoder_channels": "decode_head/fpn_bottleneck/conv/kernel",
    "auxiliary_channels": "auxiliary_head/convs/0/conv/kernel",
    "fpn_channels": "rpn_head/rpn_conv/kernel",
}
WIDTHS = (*_WIDTHS, "head_features")


def architecture_of(names: Iterable[str]) -> str:
    """A key of `TITLES`, by our names of parameters."""
    names = list(names)
    if any(name.startswith(_OF_UPERNET) for name in names):
        return "upernet"
    if not any(name.startswith(_OF_DETECTORS) for name in names):
        return ""
    stages = any(re.match(r"roi_head/(bbox|mask)_head/\d", name) for name in names)
    return "cascade_mask_rcnn" if stages else "mask_rcnn"


def count_classes(architecture: str, shapes: Shapes) -> int:
    """The number of classes of what is no plain classifier, by our names and shapes.

    Raises:
      InputError: the heads have no classifier, or one for all classes together where each should
        have its own.
    """
    if architecture == "upernet":
        count = _last_axis(shapes, 4, *_SEGMENTED)
    else:
        scores = filter(_CLASSIFIED.fullmatch, shapes)
        count = _last_axis(shapes, 2, *scores) - 1  # the background is a class
    if count < 1:
        raise InputError(
            f"the file holds only parts of a {TITLES[architecture]}: its heads have no classifier"
        )
    for name, shape in shapes.items():
        if count > 1 and name.endswith("/fc_reg/kernel") and shape[-1] == 4:
            raise InputError(
                f"its boxes are the same for all {count} classes (`reg_class_agnostic`); here, as"
                " in the paper's runs, each class has its own"
            )
        if count > 1 and name.endswith("/conv_logits/kernel") and shape[-1] == 1:
            raise InputError(
                f"its masks are the same for all {count} classes (`class_agnostic`); here, as in"
                " the paper's runs, each class has its own"
            )
    return count


def widths(shapes: Shapes) -> dict[str, int]:
    """Each of `WIDTHS`; 0: there is none, or it is damaged, which `keys.apply` will report."""
    found = {width: _last_axis(shapes, 4, name) for width, name in _WIDTHS.items()}
    first = next(filter(_CLASSIFIED.fullmatch, shapes), "")
    return found | {"head_features": shapes[first][0] if len(shapes.get(first, ())) == 2 else 0}


def _last_axis(shapes: Shapes, axes: int, *names: str) -> int:
    """The last axis of the first kernel of so many axes that is there; 0: there is none."""
    return next((shapes[name][-1] for name in names if len(shapes.get(name, ())) == axes), 0)
