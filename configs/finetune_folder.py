"""Fine-tuning on your own images: `ROOT/train/CLASS/*.jpg` and `ROOT/val/CLASS/*.jpg`.

    python -m convnext_jax.main --config configs/finetune_folder.py:tiny --workdir runs/mine \
        --config.data.dir=ROOT --config.init_from=hf-hub:timm/convnext_tiny.fb_in1k

The part after the colon is the size: atto, femto, pico, nano, tiny (the default), small, base,
large, xlarge, or any classifier of `convnext_jax.list_models()`, such as convnextv2_base. The
settings suit a few thousand images on one GPU: few steps, a small batch, weights near those they
start from, RandAugment but no mixing. One folder of classes is split at random with

    --config.data.train_split='.[:80%]' --config.data.eval_split='.[80%:]'

and a linear probe, which trains the head alone, is

    --config.optim.freeze=backbone --config.optim.lr=1e-2 --config.model.drop_path=0.0
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.models.registry import list_models

SIZES = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge")


def get_config(size: str = "tiny") -> ConfigDict:
    """The run of one size, or of a classifier by its name; raises InputError for any other."""
    name = f"convnext_{size}" if size in SIZES else size
    known = list_models(task="classification")
    if name not in known:
        raise InputError(
            f"`size` (={size}) must be one of {', '.join(SIZES)}, or a classifier's name"
            f"{did_you_mean(size, known)}"
        )
    config = default_config()
    config.num_epochs = 30.0
    config.log_every_steps = 20

    config.model.name = name
    config.model.drop_path = 0.1
    config.model.head_init_scale = 1e-3

    config.data.name = "folder"
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.exif = True  # as phones write it
    config.data.global_batch = 64
    config.data.workers = -1
    config.data.threads = 2

    config.augment.auto_augment = "rand-m9-mstd0.5-inc1"
    config.augment.erasing = 0.25

    config.optim.lr = 2e-4
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 3.0
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = 0.8
    config.optim.label_smoothing = 0.1
    # The average of about the last 100 steps: a run of a few thousand images has some 1,000.
    config.optim.ema_decay = 0.99
    return config
