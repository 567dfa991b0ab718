"""UPerNet over ConvNeXt-Atto on scenes with handwritten digits, from random weights.

    python -m convnext_jax.main --config configs/digit_scenes_segmentation.py --workdir runs/scenes

Scans of digits lie at random sizes and angles on photographs; scikit-learn ships both, so nothing
is downloaded. The same path as ADE20K, in small: minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config


def get_config() -> ConfigDict:
    """The run that docs/segmentation.md shows."""
    config = default_config()
    config.num_epochs = 8.0
    config.eval_every_epochs = 4.0
    config.log_every_steps = 100

    config.model.name = "upernet_convnext_atto"
    # Digits are a few patches wide: what tells them apart is in the second stage.
    config.model.depths = (1, 2, 2, 1)
    config.model.dims = (24, 48, 96, 192)
    # 1e-6, the variant's own, is made for hundreds of epochs.
    config.model.layer_scale_init = 1.0
    config.segmentation.decoder_channels = 32
    config.segmentation.auxiliary_channels = 16

    config.data.name = "digit_scenes"
    config.data.eval_split = "test"
    config.data.global_batch = 8
    config.data.image_size = 80
    config.data.flip = 0.0  # a mirrored digit is another digit, or none
    config.segmentation.scale_min = 1.0
    config.segmentation.scale_max = 1.2
    config.segmentation.photometric = False
    config.segmentation.dropout = 0.0

    config.optim.lr = 3e-3
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 0.2
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0
    return config
