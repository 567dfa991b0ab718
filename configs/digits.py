"""ConvNeXt-Atto on scikit-learn's handwritten digits, which come with the installation.

    python -m convnext_jax.main --config configs/digits.py --workdir runs/digits

1,437 training and 360 test images of 8x8 pixels, enlarged to 32x32. The same path as ImageNet, in
small.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config


def get_config() -> ConfigDict:
    """The run that `make train` does."""
    config = default_config()
    config.num_epochs = 30.0
    config.eval_every_epochs = 5.0
    config.log_every_steps = 22

    config.model.name = "convnext_atto"
    config.model.drop_path = 0.1
    # 1e-6, the variant's own, is made for hundreds of epochs.
    config.model.layer_scale_init = 0.1

    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.global_batch = 64
    config.data.image_size = 32
    config.data.crop = "padded"
    config.data.flip = 0.0  # a mirrored digit is another digit, or none
    config.data.eval_crop = 1.0

    config.optim.lr = 2e-3
    config.optim.warmup_epochs = 3.0
    config.optim.ema_decay = 0.99
    return config
