"""UPerNet over ConvNeXt on ADE20K, as the paper trains it (section 4, appendix A.3).

    python -m convnext_jax.data.prepare ade20k --manual_dir=/downloads --data_dir=/data/tfds
    ARGS="--config configs/ade20k.py:tiny --workdir runs/ade --config.data.dir=/data/tfds
          --config.init_from=convnext_tiny.fb_in1k"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=2 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-16 -- $ARGS  # a TPU slice

The part after the colon is a row of the paper's table, with the weights to start from and the mean
IoU that it reached in one size (windows) and in six sizes, mirrored too (whole images,
`evaluate --multi_scale`):

    tiny         512  convnext_tiny.fb_in1k     46.0  46.7
    small        512  convnext_small.fb_in1k    48.7  49.6
    base         512  convnext_base.fb_in1k     49.1  49.9
    base_22k     640  convnext_base.fb_in22k    52.6  53.1
    large_22k    640  convnext_large.fb_in22k   53.2  53.7
    xlarge_22k   640  convnext_xlarge.fb_in22k  53.6  54.0

160,000 steps of 16 images. BatchNorm takes its statistics over all 16, on any number of devices
that divides 16; with more images in a step than the devices hold at once
(`--config.data.per_device_batch`) they are of a part of them, which the start says.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Size of the model, of its crops, and the paper's learning rate and drop path.
ROWS = {
    "tiny": ("tiny", 512, 1e-4, 0.4),
    "small": ("small", 512, 1e-4, 0.3),
    "base": ("base", 512, 1e-4, 0.4),
    "base_22k": ("base", 640, 1e-4, 0.4),
    "large_22k": ("large", 640, 1e-4, 0.4),
    "xlarge_22k": ("xlarge", 640, 8e-5, 0.4),
}


def get_config(row: str = "tiny") -> ConfigDict:
    """The run of one row; raises InputError for any other."""
    require_one_of("row", row, ROWS)
    size, crop, learning_rate, drop_path = ROWS[row]
    config = default_config()
    # The final weights of ImageNet, not their moving average.
    config.init_ema = False
    config.num_steps = 160_000
    config.eval_every_steps = 16_000

    config.model.name = f"upernet_convnext_{size}"
    config.model.drop_path = drop_path

    config.data.name = "ade20k"
    config.data.eval_split = "validation"
    config.data.global_batch = 16
    config.data.image_size = crop
    config.data.workers = -1
    config.data.threads = 2

    config.optim.lr = learning_rate
    config.optim.schedule = "poly"
    config.optim.min_lr = 0.0
    config.optim.warmup_steps = 1500
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = 0.9
    config.optim.layer_decay_by = "stages"
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0  # averages and BatchNorm do not get on, says appendix A.1
    return config
