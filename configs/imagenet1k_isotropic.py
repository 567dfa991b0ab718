"""ImageNet-1K from random weights with the isotropic models: the paper's 300 epochs.

    ARGS="--config configs/imagenet1k_isotropic.py:small --workdir runs/iso
        --config.data.dir=/data/tfds"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=4 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-64 -- $ARGS  # a TPU slice

On a slice checkpoints go to a bucket, --config.checkpoint.dir=gs://NAME/DIR; see docs/hardware.md.

The part after the colon is the size: small (the default), base, large. The paper's top-1 at 224
pixels, of the moving average: 79.7 (the authors' README has 78.7), 82.0 and 82.6 %. The effective
batch is 4096 on any machine: a step accumulates over micro-batches of at most 128 images a device.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Probability of dropping the last block.
DROP_PATH = {"small": 0.1, "base": 0.2, "large": 0.5}


def get_config(size: str = "small") -> ConfigDict:
    """The run of one size; raises InputError for any other."""
    require_one_of("size", size, DROP_PATH)
    config = default_config()
    config.num_epochs = 300.0

    config.model.name = f"convnext_isotropic_{size}"
    config.model.drop_path = DROP_PATH[size]

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.global_batch = 4096
    config.data.per_device_batch = 128
    config.data.workers = -1
    config.data.threads = 2

    config.augment.auto_augment = "rand-m9-mstd0.5-inc1"
    config.augment.erasing = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0

    config.optim.lr = 4e-3
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 50.0  # against 20 of the others
    config.optim.weight_decay = 0.05
    config.optim.label_smoothing = 0.1
    config.optim.ema_decay = 0.9999
    return config
