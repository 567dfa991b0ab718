"""ImageNet-1K with a network on the road from ResNet to ConvNeXt: section 2 of the paper.

    ARGS="--config configs/roadmap.py:resnet50_gelu --workdir runs/gelu
        --config.data.dir=/data/tfds"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=4 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-64 -- $ARGS  # a TPU slice

On a slice checkpoints go to a bucket, --config.checkpoint.dir=gs://NAME/DIR; see docs/hardware.md.

The part after the colon is ResNet-50's or ResNet-200's road and a step on it, from
resnet50_enhanced_recipe (the default) to resnet50_separate_downsampling; docs/roadmap.md has all of
them, with the paper's top-1. One recipe, table 5's of ConvNeXt-T, is for all of them: 300 epochs,
without a moving average, which hurts BatchNorm (appendix A.1). BatchNorm takes its statistics over
128 images, as many as a GPU had there, and --config.model.norm_group=N over others. Which
stochastic depth ResNet-200's road had is not published: here it is ConvNeXt-B's.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import InputError, require_one_of
from convnext_jax.models.variants import ROADMAP

# Probability of dropping the last block.
DROP_PATH = {"resnet50": 0.1, "resnet200": 0.5}


def get_config(step: str = "resnet50_enhanced_recipe") -> ConfigDict:
    """The run of one step; raises InputError for any other."""
    require_one_of("step", step, [name.removeprefix("roadmap_") for name in ROADMAP])
    regime, _, change = step.partition("_")
    if change == "original":
        raise InputError(
            f"`step` (={step}) must be a later one: its accuracy is that of published weights,"
            f" which the paper did not train; {regime}_enhanced_recipe has its network"
        )
    config = default_config()
    config.num_epochs = 300.0

    config.model.name = f"roadmap_{step}"
    config.model.drop_path = DROP_PATH[regime]

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
    config.optim.warmup_epochs = 20.0
    config.optim.weight_decay = 0.05
    config.optim.label_smoothing = 0.1
    config.optim.ema_decay = 0.0
    return config
