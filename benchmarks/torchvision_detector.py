"""torchvision's Mask R-CNN over timm's ConvNeXt, with the weights of this project's.

What surrounds it there, resizing images before and pasting masks into them afterwards, is left out.
In eager PyTorch, which its lists of boxes are written for.
"""

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.models import import_timm
from convnext_jax.detection.anchors import RATIOS, base_anchors
from convnext_jax.detection.rpn import STRIDES
from convnext_jax.errors import RunError
from convnext_jax.models.spec import ModelSpec, params_of
from convnext_jax.models.variants import Preprocessing
from convnext_jax.tree import flatten_with_names

PROPOSALS, DETECTIONS, POSITIVES = 1000, 100, 128
# Pairs of region and class above the score threshold, which go through suppression.
CANDIDATES = 1000
# Objects of an image: COCO's have 7 on average; and as many as positives may need.
OBJECTS = 7, 40
# Small: proposals, and what there is to do, stay what they are.
LEARNING_RATE = 1e-8
# RoIAlign: as torchvision ships it, two samples a bin and axis, or by mmdet's rule, which is ours.
# The latter makes the two the same function.
CONTESTANTS = SHIPPED, EXACT = "torchvision", "torchvision, our RoIAlign"

# Whose rows are counted.
HEADS = "box_head", "mask_head"

# Parameters of ours, by the beginning of their name, and of the other.
_NAMES = (
    (r"backbone/downsample_layers/0/(\d)", r"backbone.body.stem_\1"),
    (r"backbone/downsample_layers/(\d)/(\d)", r"backbone.body.stages_\1.downsample.\2"),
    (r"backbone/stages/(\d)/(\d+)/dwconv", r"backbone.body.stages_\1.blocks.\2.conv_dw"),
    (r"backbone/stages/(\d)/(\d+)/pwconv(\d)", r"backbone.body.stages_\1.blocks.\2.mlp.fc\3"),
    (r"backbone/stages/(\d)/(\d+)/", r"backbone.body.stages_\1.blocks.\2."),
    (r"backbone/norm(\d)", r"backbone.norms.\1"),
    (r"neck/lateral_convs/(\d)/conv", r"backbone.pyramid.inner_blocks.\1.0"),
    (r"neck/fpn_convs/(\d)/conv", r"backbone.pyramid.layer_blocks.\1.0"),
    (r"rpn_head/rpn_conv", "rpn.head.conv.0.0"),
    (r"rpn_head/rpn_cls", "rpn.head.cls_logits"),
    (r"rpn_head/rpn_reg", "rpn.head.bbox_pred"),
    (r"roi_head/bbox_head/shared_fcs/0", "roi_heads.box_head.fc6"),
    (r"roi_head/bbox_head/shared_fcs/1", "roi_heads.box_head.fc7"),
    (r"roi_head/bbox_head/fc_cls", "roi_heads.box_predictor.cls_score"),
    (r"roi_head/bbox_head/fc_reg", "roi_heads.box_predictor.bbox_pred"),
    (r"roi_head/mask_head/convs/(\d)/conv", r"roi_heads.mask_head.\1.0"),
    (r"roi_head/mask_head/upsample", "roi_heads.mask_predictor.conv5_mask"),
    (r"roi_head/mask_head/conv_logits", "roi_heads.mask_predictor.mask_fcn_logits"),
)


def parameters(backbone: str, classes: int) -> Any:
    """The tree of parameters that both start from: initial values, drawn by NumPy.

    Scores are spread further, so that rounding decides about few of them.
    """
    spec = ModelSpec(f"mask_rcnn_convnext_{backbone}", classes)
    params = jax.tree.map(lambda x: x.values(), params_of(spec.initial(nnx.Rngs(0))))
    params["rpn_head"]["rpn_cls"]["kernel"] *= 10
    params["roi_head"]["bbox_head"]["fc_cls"]["kernel"] *= 30
    return params


def state_dict(params: Any) -> dict[str, np.ndarray]:
    """A tree of parameters of Mask R-CNN by the other's names, in its layouts."""
    found = {}
    for name, values in flatten_with_names(params).items():
        pattern, replacement = next(pair for pair in _NAMES if re.match(pair[0], name))
        other = re.sub(f"^{pattern}", replacement, name).replace("/", ".")
        other = re.sub(r"\.(kernel|scale)$", ".weight", other)
        found[other] = _laid_out(name, np.asarray(values))
    return found


def _laid_out(name: str, values: np.ndarray) -> np.ndarray:
    if "shared_fcs/0/kernel" in name:  # rows, columns, channels
        side = 7
        values = values.reshape(side, side, -1, values.shape[-1]).transpose(3, 2, 0, 1)
        return values.reshape(len(values), -1)
    if "upsample/kernel" in name:
        return values.transpose(2, 3, 0, 1)
    if name.endswith("kernel"):
        values = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
    # The background comes first, and has deltas and a mask too.
    if "fc_cls" in name:
        return np.roll(values, 1, axis=0)
    if "fc_reg" in name or "conv_logits" in name:
        more = 4 if "fc_reg" in name else 1
        return np.concatenate([np.zeros_like(values[:more]), values])
    return values


def build(params: Any, backbone: str, classes: int) -> Any:
    """The model with given parameters (ours), and `work`, rows that its heads were last given."""
    torch, timm = import_timm()
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    class Pyramid(torch.nn.Module):
        """The four maps of timm's backbone, their norms, and the pyramid of them."""

        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.body = timm.create_model(f"convnext_{backbone}", features_only=True)
            dims = self.body.feature_info.channels()
            norm = timm.layers.LayerNorm2d
            self.norms = torch.nn.ModuleList([norm(dim, eps=1e-6) for dim in dims])
            self.pyramid = FeaturePyramidNetwork(dims, 256, LastLevelMaxPool())

        def forward(self, x: Any) -> Any:
            maps = [norm(x) for norm, x in zip(self.norms, self.body(x), strict=True)]
            return self.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps)))

    class Anchors(AnchorGenerator):
        """Neither rounded, nor with a stride that a map's rounded size gives."""

        def grid_anchors(self, grid_sizes: Any, strides: Any) -> Any:
            return super().grid_anchors(grid_sizes, [[stride, stride] for stride in STRIDES])

    class RoIAlign(MultiScaleRoIAlign):
        """By mmdet's rule if `exact`, else as it is."""

        exact = False

        def forward(self, x: Any, boxes: Any, image_shapes: Any) -> Any:
            if not self.exact:
                return super().forward(x, boxes, image_shapes)
            (of_image,) = boxes
            (out, _) = self.output_size
            sides = of_image[:, 2:] - of_image[:, :2]
            scale = sides.prod(1).sqrt() / 56
            levels = torch.log2(scale + 1e-6).floor().clamp(0, 3)
            found = x["0"].new_zeros((len(of_image), 256, out, out))
            for level, stride in enumerate(STRIDES[:4]):
                (own,) = torch.where(levels == level)
                features = x[str(level)]
                found[own] = roi_align(features, [of_image[own]], out, 1 / stride, 0, True)
            return found

    generator = Anchors(tuple((8 * stride,) for stride in STRIDES), (RATIOS,) * len(STRIDES))
    generator.cell_anchors = [torch.from_numpy(base_anchors(s, 8, RATIOS)) for s in STRIDES]
    model = MaskRCNN(
        Pyramid(),
        classes + 1,
        rpn_anchor_generator=generator,
        rpn_post_nms_top_n_train=PROPOSALS,
        box_roi_pool=RoIAlign(list("0123"), 7, 2),
        mask_roi_pool=RoIAlign(list("0123"), 14, 2),
    )
    weights = {name: torch.tensor(values) for name, values in state_dict(params).items()}
    for name, wanted in model.state_dict().items():
        if ".mlp." in name:  # convolutions in timm's smallest models
            weights[name] = weights[name].reshape(wanted.shape)
    model.load_state_dict(weights)  # strict: nothing keeps what PyTorch drew
    model.work = {}
    for name in HEADS:
        getattr(model.roi_heads, name).register_forward_pre_hook(
            lambda _, inputs, name=name: model.work.__setitem__(name, len(inputs[0]))
        )
    return model


@dataclasses.dataclass
class Peer:
    """The model, with what it is given.

    Attributes:
      model: from `build`.
      images: normalised, [1, 3, H, W] with the padding.
      size: height and width of the image in it.
      targets: of training; None: those are not known yet.
    """

    model: Any
    images: Any
    size: tuple[int, int]
    targets: list[dict[str, Any]] | None = None

    def __call__(self) -> Any:
        """Losses by name in training, else detections of the image."""
        from torchvision.models.detection.image_list import ImageList

        targets = self.targets if self.model.training else None
        features = self.model.backbone(self.images)
        proposals, of_anchors = self.model.rpn(
            ImageList(self.images, [self.size]), features, targets
        )
        found, of_regions = self.model.roi_heads(features, proposals, [self.size], targets)
        return of_anchors | of_regions if self.model.training else found[0]

    def choose(self, contestant: str) -> None:
        """Which RoIAlign is used."""
        heads = self.model.roi_heads
        heads.box_roi_pool.exact = heads.mask_roi_pool.exact = contestant == EXACT

    def lay_out(self, memory_format: Any) -> None:
        """Changes in which order channels lie."""
        self.model.to(memory_format=memory_format)
        self.images = self.images.contiguous(memory_format=memory_format)


def peer(params: Any, backbone: str, classes: int, scene: Mapping[str, Any]) -> Peer:
    """The model, given a scene (see `make_scene`; without objects it can do inference)."""
    torch, _ = import_timm()
    model = build(params, backbone, classes)
    canvas, feeding = scene["image"], Preprocessing()
    height, width = map(int, scene["size"])
    images = np.zeros(canvas.shape, np.float32)
    images[:height, :width] = (canvas[:height, :width] / 255 - feeding.mean) / feeding.std
    made = Peer(model, torch.from_numpy(images.transpose(2, 0, 1).copy())[None], (height, width))
    if "boxes" in scene:
        masks = np.unpackbits(scene["masks"], axis=-1)
        targets = {
            "boxes": torch.from_numpy(scene["boxes"]),
            "labels": torch.from_numpy(scene["labels"].astype(np.int64)) + 1,
            "masks": torch.from_numpy(masks),
        }
        made.targets = [targets]
        model.roi_heads.score_thresh = float(scene["threshold"])
    return made


def steps(made: Peer, mode: str) -> Callable[[], Any]:
    """What a step of a mode does: detections, or losses by name after an update."""
    torch, _ = import_timm()
    made.model.train(mode == "train")
    if mode == "infer":

        def infer() -> Any:
            with torch.inference_mode():
                return made()

        return infer
    optimizer = torch.optim.AdamW(
        made.model.parameters(), LEARNING_RATE, weight_decay=0.05, fused=True
    )

    def train() -> Any:
        optimizer.zero_grad(set_to_none=True)
        losses = made()
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    return train


def make_scene(
    params: Any, backbone: str, classes: int, size: tuple[int, int], canvas: tuple[int, int]
) -> dict[str, np.ndarray]:
    """An image and its objects, at which both detectors have all the work there can be.

    Weights are random, so proposals are where they happen to be, and objects are put there: as many
    as give `POSITIVES` positives, if `OBJECTS` can. As the score threshold is that of `CANDIDATES`
    pairs of region and class, there are `DETECTIONS`.

    Returns:
      `image`, uint8 [*canvas, 3]; `size`; `boxes`, `labels`, packed `masks`, `threshold`; and of
      the detections found by mmdet's RoIAlign `found_boxes`, `found_labels`.

    Raises:
      RunError: there are fewer proposals or detections.
    """
    torch, _ = import_timm()
    rng = np.random.default_rng(0)
    image = np.zeros((*canvas, 3), np.uint8)
    # Patches of colours, and noise on them.
    rows, columns = (-(-side // 40) for side in size)
    patches = rng.integers(0, 192, (rows, columns, 3)).repeat(40, 0).repeat(40, 1)
    image[: size[0], : size[1]] = patches[: size[0], : size[1]] + rng.integers(0, 64, (*size, 3))
    scene: dict[str, Any] = {"image": image, "size": np.array(size, np.int32)}
    made = peer(params, backbone, classes, scene)
    made.choose(EXACT)
    seen: dict[str, Any] = {}
    made.model.rpn.register_forward_hook(lambda _, __, out: seen.update(proposals=out[0][0]))
    made.model.roi_heads.box_predictor.register_forward_hook(
        lambda _, __, out: seen.update(logits=out[0])
    )
    rpn, heads = made.model.rpn, made.model.roi_heads
    before = rpn._pre_nms_top_n
    made.model.eval()
    with torch.inference_mode():
        heads.score_thresh = 2.0  # no detections yet
        rpn._pre_nms_top_n = before | {"testing": before["training"]}
        made()
        trained_on = seen["proposals"].numpy()
        rpn._pre_nms_top_n = before
        made()
        tested_on = seen["proposals"]
        scores = seen["logits"].softmax(-1)[:, 1:].flatten().sort(descending=True).values
        heads.score_thresh = float(scores[CANDIDATES])
        found = made()
    scene["threshold"] = np.float32(heads.score_thresh)
    counts = {"proposals of training": (len(trained_on), PROPOSALS)}
    counts["proposals of inference"] = len(tested_on), PROPOSALS
    counts["detections"] = len(found["boxes"]), DETECTIONS
    for name, (count, wanted) in counts.items():
        if count != wanted:
            raise RunError(f"there must be {wanted} {name} (={count}) to measure at this size")
    boxes = choose_objects(trained_on)
    scene["boxes"], scene["labels"] = boxes, rng.integers(0, classes, len(boxes)).astype(np.int32)
    y, x = np.mgrid[: canvas[0], : canvas[1]]
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    ellipses = [
        ((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 < 1
        for (cx, cy), (w, h) in zip(centres, halves, strict=True)
    ]
    scene["masks"] = np.packbits(np.stack(ellipses), axis=-1)
    scene["found_boxes"] = found["boxes"].numpy()
    scene["found_labels"] = found["labels"].numpy() - 1
    return scene


def choose_objects(proposals: np.ndarray) -> np.ndarray:
    """Boxes [G, 4] that are half covered by as many of the proposals [P, 4] as can be."""
    x1, y1, x2, y2 = (proposals[:, i] for i in range(4))
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (x2 - x1) * (y2 - y1)
    near = common / (areas[:, None] + areas - common) >= 0.5
    free, chosen = np.ones(len(proposals), bool), []
    while len(chosen) < OBJECTS[1] and (len(chosen) < OBJECTS[0] or (~free).sum() < POSITIVES):
        best = (near & free).sum(1).argmax()
        chosen.append(best)
        free &= ~near[best]
    return proposals[chosen]


def read_scene(folder: Path) -> dict[str, np.ndarray]:
    """A scene that was written."""
    with np.load(folder / "scene.npz") as file:
        return dict(file)
