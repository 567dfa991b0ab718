"""Mask R-CNN (arXiv 1703.06870) over a ConvNeXt backbone, as "A ConvNet for the 2020s" trains it.

Sources: the paper's section 4 and appendix A.3, its official configs, and mmdetection 2.11 on which
they stand. Parameters have the names of its checkpoints.
"""

import jax
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
from convnext_jax.detection.loss import cross_entropy, share, smooth_l1
from convnext_jax.detection.regions import Objects, Regions, sample_regions
from convnext_jax.detection.results import Detections, select
from convnext_jax.detection.roi_head import RoIHead

# What deltas are divided by, and the IoU from which on a region is an object's.
STDS = (0.1, 0.1, 0.2, 0.2)
THRESHOLD = 0.5


class StandardRoIHead(RoIHead):
    """One box head and one mask head."""

    def make_heads(self, channels: int, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Sets `bbox_head` and `mask_head`, with initial parameters."""
        self.bbox_head = BoxHead(
            channels, self.num_classes, features, convs=0, layers=2, dtype=dtype, rngs=rngs
        )
        self.mask_head = MaskHead(channels, self.num_classes, dtype, rngs)

    def losses(
        self, key: Array, view: View, regions: Regions, objects: Objects, masks: Array
    ) -> dict[str, Array]:
        """`loss_cls`, `loss_bbox` and `loss_mask`; see `RoIHead`.

        The first two are divided by the number of all regions drawn, the last is a mean over the
        positive ones.
        """
        sampled = sample_regions(
            key,
            regions,
            objects,
            self.num_classes,
            threshold=THRESHOLD,
            low_quality=True,
            **vars(self.sampling),
        )
        logits, deltas = look(self.bbox_head, view, sampled.boxes, True, sampled.valid)
        wanted = boxes.encode(sampled.boxes, sampled.targets, STDS)
        off = smooth_l1(of_class(deltas, sampled.labels) - wanted, 0).sum(-1)
        count = sampled.valid.sum()
        return {
            "loss_cls": share(cross_entropy(logits, sampled.labels), sampled.valid, count),
            "loss_bbox": share(off, sampled.positive, count),
            "loss_mask": mask_loss(self.mask_head, view, sampled, masks, self.sampling.positives),
        }

    def detect(self, view: View, regions: Regions) -> Detections:
        """What there is at the regions that were proposed."""
        logits, deltas = look(self.bbox_head, view, regions.boxes)
        found, scores, labels = select(logits, deltas, regions, view.sizes, STDS, self.selection)
        masks = look_for_masks(self.mask_head, view.features(found, MASK_FEATURES), labels)
        return Detections(found, scores, labels, jax.nn.sigmoid(masks))


class MaskRCNN(Detector):
    """Mask R-CNN; arguments and calls are those of `Detector`."""

    AFTER_TRAIN = 1000
    WITHIN_IMAGE = False
    RPN_BETA = 0.0
    ROI_HEAD = StandardRoIHead
