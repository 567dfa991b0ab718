"""Cascade Mask R-CNN (arXiv 1712.00726) over ConvNeXt, as "A ConvNet for the 2020s" trains it.

Sources: as `mask_rcnn`. This is mmdetection's cascade with the paper's changes: regions are drawn
anew in each stage, each stage has a mask head, boxes are of single classes and learn by GIoU.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.detection import boxes
from convnext_jax.detection.detector import Detector
from convnext_jax.detection.frame import View
from convnext_jax.detection.heads import (
    MASK_FEATURES,
    BoxHead,
    MaskHead,
    look,
    look_for_masks,
    mask_loss,
    of_class,
)
from convnext_jax.detection.loss import cross_entropy, share
from convnext_jax.detection.regions import Objects, Regions, Sampled, sample_regions
from convnext_jax.detection.results import Detections, select
from convnext_jax.detection.roi_head import RoIHead


@dataclasses.dataclass(frozen=True)
class Stage:
    """In what the stages differ.

    Attributes:
      threshold: IoU from which on a region is an object's.
      stds: what deltas are divided by.
      weight: of its losses.
    """

    threshold: float
    stds: tuple[float, float, float, float]
    weight: float


STAGES = (
    Stage(0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    Stage(0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    Stage(0.7, (0.033, 0.033, 0.067, 0.067), 0.25),
)
BOX_WEIGHT = 10.0  # of the GIoU loss beside the cross entropy


class CascadeRoIHead(RoIHead):
    """Three box heads, each of which looks at the boxes of the one before, and three mask heads."""

    def make_heads(self, channels: int, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Sets `bbox_head` and `mask_head`, with initial parameters."""
        classes = self.num_classes
        self.bbox_head = nnx.List(
            [
                BoxHead(channels, classes, features, convs=4, layers=1, dtype=dtype, rngs=rngs)
                for _ in STAGES
            ]
        )
        self.mask_head = nnx.List([MaskHead(channels, classes, dtype, rngs) for _ in STAGES])

    def losses(
        self, key: Array, view: View, regions: Regions, objects: Objects, masks: Array
    ) -> dict[str, Array]:
        """`s0_loss_cls`, `s0_loss_bbox`, `s0_loss_mask`, `s1_loss_cls` ..., with their weights.

        Denominators are those of Mask R-CNN, of each stage's own regions. See `RoIHead`.
        """
        losses = {}
        for number, (stage, of_stage) in enumerate(
            zip(STAGES, jax.random.split(key, len(STAGES)), strict=True)
        ):
            sampled = sample_regions(
                of_stage,
                regions,
                objects,
                self.num_classes,
                threshold=stage.threshold,
                low_quality=False,
                **vars(self.sampling),
            )
            head = self.bbox_head[number]
            logits, deltas = look(head, view, sampled.boxes, True, sampled.valid)
            moved = boxes.decode(sampled.boxes, of_class(deltas, sampled.labels), stage.stds)
            off = boxes.giou_loss(moved, sampled.targets)
            count = sampled.valid.sum()
            of_masks = mask_loss(
                self.mask_head[number], view, sampled, masks, self.sampling.positives
            )
            found = {
                "loss_cls": share(cross_entropy(logits, sampled.labels), sampled.valid, count),
                "loss_bbox": BOX_WEIGHT * share(off, sampled.positive, count),
                "loss_mask": of_masks,
            }
            losses |= {f"s{number}_{name}": stage.weight * x for name, x in found.items()}
            regions = self._after(stage, view, sampled, logits, deltas)
        return losses

    def _after(
        self, stage: Stage, view: View, sampled: Sampled, logits: Array, deltas: Array
    ) -> Regions:
        """The regions of the next stage: those drawn, moved; without the objects' own boxes."""
        labels = jnp.where(sampled.positive, sampled.labels, logits[..., :-1].argmax(-1))
        moved = _moved(stage, view, sampled.boxes, deltas, labels)
        return Regions(moved, sampled.valid & ~sampled.given)

    def detect(self, view: View, regions: Regions) -> Detections:
        """What there is at the regions that were proposed.

        Boxes are of the last stage, scores of the mean logits of all, masks the mean of all.
        """
        *before, last = zip(STAGES, self.bbox_head, strict=True)
        of_stages = []
        for stage, head in before:
            logits, deltas = look(head, view, regions.boxes)
            of_stages.append(logits)
            moved = _moved(stage, view, regions.boxes, deltas, logits[..., :-1].argmax(-1))
            regions = Regions(moved, regions.valid)
        stage, head = last
        logits, deltas = look(head, view, regions.boxes)
        mean = sum(of_stages, logits) / len(STAGES)
        found, scores, labels = select(
            mean, deltas, regions, view.sizes, stage.stds, self.selection
        )
        x = view.features(found, MASK_FEATURES)
        masks = [jax.nn.sigmoid(look_for_masks(head, x, labels)) for head in self.mask_head]
        return Detections(found, scores, labels, jnp.stack(masks).mean(0))


def _moved(stage: Stage, view: View, places: Array, deltas: Array, labels: Array) -> Array:
    """Boxes moved by the deltas of given classes, within the image; no gradient."""
    moved = boxes.decode(places, of_class(deltas, labels), stage.stds)
    return jax.lax.stop_gradient(boxes.clip(moved, view.sizes[:, None]))


class CascadeMaskRCNN(Detector):
    """Cascade Mask R-CNN; arguments and calls are those of `Detector`."""

    AFTER_TRAIN = 2000
    WITHIN_IMAGE = True
    RPN_BETA = 1 / 9
    ROI_HEAD = CascadeRoIHead
