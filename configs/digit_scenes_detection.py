"""Mask R-CNN over ConvNeXt-Atto on scenes with handwritten digits, from random weights.

    python -m convnext_jax.main --config configs/digit_scenes_detection.py --workdir runs/scenes_det

Scans of digits lie at random sizes and angles on photographs; scikit-learn ships both, so nothing
is downloaded. The same path as COCO, in small: minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config


def get_config() -> ConfigDict:
    """The run that docs/detection.md shows."""
    config = default_config()
    config.num_epochs = 3.0
    config.eval_every_epochs = 1.5
    config.log_every_steps = 100

    config.model.name = "mask_rcnn_convnext_atto"
    config.model.depths = (1, 2, 2, 1)
    config.model.dims = (24, 48, 96, 192)
    config.detection.fpn_channels = 48
    config.detection.head_features = 128
    config.detection.short_sides = (96,)
    config.detection.longest_side = 96
    config.detection.crops = False
    config.detection.max_objects = 8
    config.detection.rpn_before = 200
    config.detection.rpn_after = 100
    config.detection.rpn_before_eval = 200
    config.detection.rpn_after_eval = 100
    config.detection.roi_samples = 32
    config.detection.detections = 16

    config.data.name = "digit_scenes"
    config.data.eval_split = "test"
    config.data.global_batch = 8
    config.data.flip = 0.0  # a mirrored digit is another digit, or none

    config.optim.lr = 2e-3
    config.optim.schedule = "step"
    config.optim.milestones = (2,)
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 5.0
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0
    return config
