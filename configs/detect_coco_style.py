"""Mask R-CNN or Cascade Mask R-CNN on images of one's own, annotated in COCO's format.

    python -m convnext_jax.main --config configs/detect_coco_style.py:mask_rcnn_tiny
        --workdir runs/own --config.data.dir=IMAGES --config.data.annotations=train.json
        --config.data.eval_annotations=val.json --config.init_from=convnext_tiny.fb_in1k

Classes are the `categories` of the JSON, in its order; masks are polygons or run lengths. IMAGES
holds the files that the JSON names, or has `train` and `val` with them.

The part after the colon is the detector and the size of its backbone, mask_rcnn_tiny (the default)
to cascade_mask_rcnn_xlarge, or any model with four stages, as in mask_rcnn_convnextv2_atto. The
rest is the paper's recipe of COCO for a batch of 16: of fewer images, lower `optim.lr` as much.
Learning rate, its decay over the layers and drop path are those of the paper's row with the same
detector and size, and of Mask R-CNN over ConvNeXt-T where it has none.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

_SIZES = ("tiny", "small", "base", "large", "xlarge")
_DETECTORS = ("cascade_mask_rcnn", "mask_rcnn")
# Learning rate, its decay over the layers, drop path: appendix A.3; of two rows that with
# ImageNet-1K's weights.
_PAPER = {
    "cascade_mask_rcnn_convnext_tiny": (2e-4, 0.7, 0.4),
    "cascade_mask_rcnn_convnext_small": (2e-4, 0.7, 0.6),
    "cascade_mask_rcnn_convnext_base": (2e-4, 0.8, 0.7),
    "cascade_mask_rcnn_convnext_large": (1e-4, 0.7, 0.7),
    "cascade_mask_rcnn_convnext_xlarge": (1e-4, 0.7, 0.8),
}
_OTHERWISE = (1e-4, 0.95, 0.4)


def get_config(model: str = "mask_rcnn_tiny") -> ConfigDict:
    """The run of one model, as `mask_rcnn_tiny` or `mask_rcnn_convnext_tiny`."""
    detector = next((name for name in _DETECTORS if model.startswith(f"{name}_")), model)
    require_one_of("model, its detector", detector, _DETECTORS)
    backbone = model.removeprefix(f"{detector}_")
    if backbone in _SIZES:
        backbone = f"convnext_{backbone}"
    config = default_config()
    config.init_ema = False
    config.num_epochs = 36.0
    config.eval_every_epochs = 3.0

    name = f"{detector}_{backbone}"
    learning_rate, layer_decay, drop_path = _PAPER.get(name, _OTHERWISE)
    config.model.name = name
    config.model.drop_path = drop_path

    config.data.name = "folder"
    config.data.eval_split = "val"
    config.data.global_batch = 16
    config.data.workers = -1
    config.data.threads = 2

    config.optim.lr = learning_rate
    config.optim.schedule = "step"
    config.optim.milestones = (27, 33)
    config.optim.warmup_steps = 500
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = layer_decay
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0
    return config
