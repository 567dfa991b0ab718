"""Detectors in mmdetection: tables of the pyramid and the heads, which its 2.x and 3.x share."""

from convnext_jax.convert.keys import TRANSPOSED_CONVOLUTION, USUAL, Order, Row
from convnext_jax.convert.upernet_rows import COUNTER

# By which files of both are told from each other: the heads of a cascade have numbers.
PRESENT = {
    "mask_rcnn": "roi_head.bbox_head.shared_fcs.",
    "cascade_mask_rcnn": "roi_head.bbox_head.0.shared_fcs.",
}
COUNTERS = rf"roi_head\.bbox_head\.\d+\.shared_convs\.\d+\.bn\.{COUNTER}"

# What RoIAlign gives box heads.
_MAP = Order(USUAL.convolution, (7, 7))


def heads(architecture: str) -> tuple[Row, ...]:
    """The table of all but the backbone; a key of `PRESENT` says of which detector.

    Class scores have the background last, deltas four to a class: on both sides.
    """
    ours, theirs = ("/{S}", ".{S}") if architecture == "cascade_mask_rcnn" else ("", "")
    boxes, their_boxes = f"roi_head/bbox_head{ours}", f"roi_head.bbox_head{theirs}"
    masks, their_masks = f"roi_head/mask_head{ours}", f"roi_head.mask_head{theirs}"
    convs, their_convs = f"{boxes}/shared_convs/{{i}}", f"{their_boxes}.shared_convs.{{i}}"
    return (
        Row("neck/{part}/{i}/conv/*", "neck.{part}.{i}.conv.*"),
        Row("rpn_head/{part}/*", "rpn_head.{part}.*"),
        Row(f"{convs}/conv/*", f"{their_convs}.conv.*"),
        Row(f"{convs}/bn/*", f"{their_convs}.bn.*"),
        Row(f"{convs}/bn/mean", f"{their_convs}.bn.running_mean"),
        Row(f"{convs}/bn/var", f"{their_convs}.bn.running_var"),
        # The first looks at maps: channels, rows, columns there; rows, columns, channels here.
        Row(f"{boxes}/shared_fcs/0/*", f"{their_boxes}.shared_fcs.0.*", order=_MAP),
        Row(f"{boxes}/shared_fcs/{{i}}/*", f"{their_boxes}.shared_fcs.{{i}}.*"),
        Row(f"{boxes}/{{part}}/*", f"{their_boxes}.{{part}}.*"),
        Row(f"{masks}/convs/{{i}}/conv/*", f"{their_masks}.convs.{{i}}.conv.*"),
        Row(
            f"{masks}/upsample/*",
            f"{their_masks}.upsample.*",
            order=TRANSPOSED_CONVOLUTION,
        ),
        Row(f"{masks}/{{part}}/*", f"{their_masks}.{{part}}.*"),
    )
