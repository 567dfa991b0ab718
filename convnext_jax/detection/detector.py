"""What both detectors share: the backbone, the pyramid, and regions proposed from it."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.detection import anchors
from convnext_jax.detection.fpn import FPN
from convnext_jax.detection.frame import MULTIPLE, ROI_STRIDES, View, laid, own_sizes
from convnext_jax.detection.regions import Regions, find_objects
from convnext_jax.detection.results import Detections, Selection
from convnext_jax.detection.roi_head import RoIHead, Sampling
from convnext_jax.detection.rpn import STRIDES, RPNHead, propose, rpn_losses
from convnext_jax.models import checks, layers
from convnext_jax.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class _Proposals:
    """How many are taken of a level, and then of an image."""

    before: int
    after: int


class Detector(layers.Keyed):
    """A detector in two stages over ConvNeXt: images to boxes and masks of objects, or to losses.

    Args:
      num_classes: labels lie in [0, num_classes).
      dims: number of channels of each of the four stages.
      dtype: dtype of computation: float32, bfloat16, or for inference float16; parameters, logits,
        deltas, boxes and losses are float32.
      rngs: its `params` stream draws the initial values; nothing of it is kept.
      fpn_channels: width of the pyramid, and of the convolutions in the heads.
      head_features: width of the hidden layers of box heads.
      anchor_scale: square root of an anchor's area, in strides of its level (4 to 64 pixels).
      rpn_samples: anchors of an image that training draws; half of them positive at most.
      rpn_before_train: anchors of a level that go into non-maximum suppression, in training.
      rpn_before_test: the same in inference.
      rpn_after_train: regions of an image that come out of it, in training; None: as the paper's
        configs have it, 1000 for Mask R-CNN and 2000 for Cascade Mask R-CNN.
      rpn_after_test: the same in inference.
      roi_samples: regions of an image that training draws.
      roi_positive_fraction: part of them that is positive at most, in (0, 1].
      detections: of an image, at most.
      candidates: pairs of region and class, the surest of an image, that detections are chosen
        from. The result is that of all pairs unless more of them exceed `score_threshold`, and the
        surest so many have fewer than `detections` left after suppression.
      score_threshold: probability that a detection exceeds, in [0, 1).
      nms_threshold: IoU with a surer one of its class that a detection does not exceed, in [0, 1].
      **backbone: other arguments of `ConvNeXt`.

    Raises:
      InputError: if an argument is out of range.
    """

    # In which the two differ.
    AFTER_TRAIN: ClassVar[int]
    WITHIN_IMAGE: ClassVar[bool]  # training draws no anchors that cross the border
    RPN_BETA: ClassVar[float]  # of the smooth L1 loss of anchors' deltas
    ROI_HEAD: ClassVar[type[RoIHead]]

    def __init__(
        self,
        *,
        num_classes: int,
        dims: Sequence[int],
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
        fpn_channels: int = 256,
        head_features: int = 1024,
        anchor_scale: float = 8.0,
        rpn_samples: int = 256,
        rpn_before_train: int = 2000,
        rpn_before_test: int = 1000,
        rpn_after_train: int | None = None,
        rpn_after_test: int = 1000,
        roi_samples: int = 512,
        roi_positive_fraction: float = 0.25,
        detections: int = 100,
        candidates: int = 4000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        **backbone,
    ) -> None:
        """Draws the initial parameters."""
        after_train = self.AFTER_TRAIN if rpn_after_train is None else rpn_after_train
        checks.require(len(dims) == 4, "dims", tuple(dims), "be of four stages")
        for name, number in {
            "num_classes": num_classes,
            "fpn_channels": fpn_channels,
            "head_features": head_features,
            "anchor_scale": anchor_scale,
            "rpn_before_train": rpn_before_train,
            "rpn_before_test": rpn_before_test,
            "rpn_after_train": after_train,
            "rpn_after_test": rpn_after_test,
            "detections": detections,
            "candidates": candidates,
        }.items():
            checks.require(number > 0, name, number, "be positive")
        for name, number in {"rpn_samples": rpn_samples, "roi_samples": roi_samples}.items():
            checks.require(number >= 2, name, number, "be 2 or more")
        checks.require(
            1 / roi_samples <= roi_positive_fraction <= 1,
            "roi_positive_fraction",
            roi_positive_fraction,
            f"be a fraction of `roi_samples` (={roi_samples}) that is one region or more",
        )
        checks.require(
            0 <= score_threshold < 1, "score_threshold", score_threshold, "lie in [0, 1)"
        )
        checks.require(0 <= nms_threshold <= 1, "nms_threshold", nms_threshold, "lie in [0, 1]")
        self.num_classes = num_classes
        self.backbone = Backbone(dims=dims, dtype=dtype, rngs=rngs, **backbone)
        self.dtype, self.in_channels = self.backbone.dtype, self.backbone.in_channels
        self.neck = FPN(dims, fpn_channels, self.dtype, rngs)
        self.rpn_head = RPNHead(fpn_channels, self.dtype, rngs)
        sampling = Sampling(roi_samples, int(roi_samples * roi_positive_fraction))
        selection = Selection(detections, candidates, score_threshold, nms_threshold)
        self.roi_head = self.ROI_HEAD(
            fpn_channels, num_classes, head_features, sampling, selection, self.dtype, rngs
        )
        self.anchor_scale, self.rpn_samples = anchor_scale, rpn_samples
        self.proposals_train = _Proposals(rpn_before_train, after_train)
        self.proposals_test = _Proposals(rpn_before_test, rpn_after_test)

    def __call__(
        self,
        images: Array,
        key: Array | None = None,
        *,
        sizes: Array,
        portrait: Array,
        boxes: Array | None = None,
        labels: Array | None = None,
        masks: Array | None = None,
    ) -> Detections | dict[str, Array]:
        """Finds objects, or computes how far it is from finding those that there are.

        Each image is seen as if it were alone and filled up with zeros to multiples of 32 pixels,
        however large the canvas is. `frame` says how portrait images lie on it.

        Args:
          images: [N, S, L, 3] floating point, normalised, each in the upper left of the canvas,
            zeros beyond; S and L are multiples of 32. All are landscape, or all portrait, which lie
            on their side.
          key: turns training on: decides what is drawn and dropped, has BatchNorm take statistics
            of the batch, which the model takes note of; None is inference.
          sizes: whole numbers [N, 2], heights and widths of the images in pixels, upright.
          portrait: whole numbers [N], 1 for portrait images, 0 for landscape; all equal.
          boxes: float32 [N, G, 4], of the objects; for training, as the following.
          labels: int32 [N, G], their classes; -1 where there is none.
          masks: uint8 [N, G, S, L // 8], their bitmaps as they lie on the canvas, bits packed along
            the last axis as by `numpy.packbits`.

        Returns:
          In inference what is found; in training losses by name, float32 scalars, whose sum is the
          loss. Denominators are counts of the whole micro-batch.

        Raises:
          InputError: arrays do not fit together.
        """
        self._check(images, key, (sizes, portrait), (boxes, labels, masks))
        keys = None if key is None else jax.random.split(key, 3)
        lying = portrait[0] > 0
        own = own_sizes(sizes, lying)
        backbone = laid(self.backbone, lying)
        maps, of_maps = backbone.features_within(images, own, None if keys is None else keys[0])
        levels, of_levels = laid(self.neck, lying)(maps, of_maps)
        logits, deltas = laid(self.rpn_head, lying)(levels, of_levels)

        canvas = images.shape[1], images.shape[2]
        places = anchors.anchor_boxes(canvas, STRIDES, self.anchor_scale, portrait=lying)
        valid = anchors.valid_anchors(canvas, STRIDES, sizes, portrait=lying)
        count = self.proposals_test if keys is None else self.proposals_train
        regions: Regions = propose(
            logits, deltas, places, valid, sizes, before=count.before, after=count.after
        )
        seen = len(ROI_STRIDES)
        view = View(levels[:seen], of_levels[:seen], sizes, lying)
        if keys is None:
            return self.roi_head.detect(view, regions)

        assert boxes is not None and labels is not None and masks is not None
        objects = find_objects(boxes, labels)
        place, drawable = jnp.concatenate(places), jnp.concatenate(valid, axis=1)
        if self.WITHIN_IMAGE:
            drawable &= anchors.inside_image(place[None], sizes)
        losses = rpn_losses(
            keys[1],
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(deltas, axis=1),
            place,
            drawable,
            objects,
            samples=self.rpn_samples,
            beta=self.RPN_BETA,
        )
        return losses | self.roi_head.losses(keys[2], view, regions, objects, masks)

    def _check(
        self,
        images: Array,
        key: Array | None,
        about: tuple[Array, Array],
        targets: tuple[Array | None, ...],
    ) -> None:
        """Raises InputError for images, what is known about them, and targets that do not fit."""
        checks.check_inputs(images, key, self.in_channels, MULTIPLE)
        n, short, long = images.shape[:3]
        checks.require(
            short % MULTIPLE == long % MULTIPLE == 0,
            "images",
            f"shape {images.shape}",
            f"have sides that are multiples of {MULTIPLE}",
        )
        arrays: dict[str, Array | None] = dict(zip(("sizes", "portrait"), about, strict=True))
        if key is not None:
            arrays |= zip(("boxes", "labels", "masks"), targets, strict=True)
        for name, x in arrays.items():
            checks.require(x is not None, name, x, "be given in training")
        shapes = {name: x.shape for name, x in arrays.items() if x is not None}
        count = shapes["labels"][-1] if "labels" in shapes else 0
        wanted = {
            "sizes": (n, 2),
            "portrait": (n,),
            "boxes": (n, count, 4),
            "labels": (n, count),
            "masks": (n, count, short, long // 8),
        }
        for name, found in shapes.items():
            rule = f"have shape {wanted[name]} beside these images and labels"
            checks.require(found == wanted[name], name, f"shape {found}", rule)
