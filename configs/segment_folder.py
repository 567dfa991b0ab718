"""UPerNet over ConvNeXt on images and masks of one's own.

    python -m convnext_jax.main --config configs/segment_folder.py:tiny --workdir runs/own
        --config.data.dir=ROOT --config.init_from=convnext_tiny.fb_in1k

ROOT has `images/train`, `images/val`, `annotations/train`, `annotations/val` and `classes.txt`, one
class a line. An annotation is a PNG of its image's name and size with a class's number at each
pixel: 0 is the first line of `classes.txt`, 255 is no class. Where numbers begin elsewhere or
another one is no class, say so; ADE20K's own files would be

    --config.segmentation.first_label=1 --config.segmentation.ignored=0

The part after the colon is the size of the backbone: tiny (the default), small, base, large,
xlarge, or any model with four stages, such as convnextv2_atto. The rest is the paper's recipe of
ADE20K, for 40 epochs of batches of 16, with one of warm-up, and one drop path for all sizes.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config

_SIZES = ("tiny", "small", "base", "large", "xlarge")


def get_config(backbone: str = "tiny") -> ConfigDict:
    """The run with one backbone, as `convnext_tiny` or just `tiny`."""
    config = default_config()
    config.init_ema = False
    config.num_epochs = 40.0
    config.eval_every_epochs = 4.0

    name = f"convnext_{backbone}" if backbone in _SIZES else backbone
    config.model.name = f"upernet_{name}"
    config.model.drop_path = 0.3

    config.data.name = "folder"
    config.data.eval_split = "val"
    config.data.global_batch = 16
    config.data.image_size = 512
    config.data.workers = -1
    config.data.threads = 2

    config.optim.lr = 1e-4
    config.optim.schedule = "poly"
    config.optim.min_lr = 0.0
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = 0.9
    config.optim.layer_decay_by = "stages"
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0
    return config
