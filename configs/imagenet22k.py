"""ImageNet-22K from random weights: the paper's 90 epochs.

    python -m convnext_jax.data.prepare imagenet22k --manual_dir=/downloads --data_dir=/data/tfds
    ARGS="--config configs/imagenet22k.py:base --workdir runs/in22k --config.data.dir=/data/tfds"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=4 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-64 -- $ARGS  # a TPU slice

On a slice checkpoints go to a bucket, --config.checkpoint.dir=gs://NAME/DIR; see docs/hardware.md.

The part after the colon is the size: base (the default), large, xlarge. `/downloads` holds a folder
or a tar file for each class, or the archive `fall11_whole.tar` (21,841 classes, the paper's) or
`winter21_whole.tar.gz` (19,167) as it was downloaded. The effective batch is 4096 on any machine: a
step accumulates over micro-batches of at most 64 images a device.

The paper gives no accuracy on ImageNet-22K itself. After fine-tuning with finetune_22k_1k.py its
weights reach 85.8, 86.6 and 87.0 % top-1 on ImageNet-1K at 224 pixels; 86.8, 87.5 and 87.8 % at
384.

There is no validation split. Examples are stored in random order, so the last 50,000, as many as
ImageNet-1K has for validation, are a fair sample; they are held out, because an evaluation on
training images would not show overfitting. That leaves out 0.4 % of the images, which the paper's
runs, never evaluated on ImageNet-22K, trained on too: `--config.data.train_split=train` does so.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Probability of dropping the last block.
DROP_PATH = {"base": 0.1, "large": 0.1, "xlarge": 0.2}
# Examples that share a draw of mixing: those of a device in the official runs.
MIX_GROUP = {"base": 32, "large": 64, "xlarge": 32}


def get_config(size: str = "base") -> ConfigDict:
    """The run of one size; raises InputError for any other."""
    require_one_of("size", size, DROP_PATH)
    config = default_config()
    config.num_epochs = 90.0

    config.model.name = f"convnext_{size}"
    config.model.drop_path = DROP_PATH[size]

    config.data.name = "imagenet22k"
    config.data.train_split = "train[:-50000]"
    config.data.eval_split = "train[-50000:]"
    config.data.global_batch = 4096
    config.data.per_device_batch = 64
    config.data.workers = -1
    config.data.threads = 2

    config.augment.auto_augment = "rand-m9-mstd0.5-inc1"
    config.augment.erasing = 0.25
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
    config.augment.mix_group = MIX_GROUP[size]

    config.optim.lr = 4e-3
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 5.0
    config.optim.weight_decay = 0.05
    config.optim.label_smoothing = 0.1
    config.optim.ema_decay = 0.0
    return config
