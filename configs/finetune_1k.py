"""Fine-tuning models trained on ImageNet-1K at 224 pixels to 384 pixels.

    ARGS="--config configs/finetune_1k.py:base_384 --workdir runs/ft
        --config.init_from=runs/in1k --config.data.dir=/data/tfds"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=4 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-64 -- $ARGS  # a TPU slice

On a slice checkpoints go to a bucket, --config.checkpoint.dir=gs://NAME/DIR; see docs/hardware.md.

The part after the colon is base_384 (the default) or large_384. The paper's top-1: 85.1 and 85.5 %.
The base model starts from its raw weights, the large one from their moving average.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Size, probability of dropping the last block, and whether to start from the moving average.
RUNS = {"base_384": ("base", 0.8, False), "large_384": ("large", 0.95, True)}


def get_config(run: str = "base_384") -> ConfigDict:
    """One of the runs; raises InputError for any other."""
    require_one_of("run", run, RUNS)
    size, drop_path, from_ema = RUNS[run]
    config = default_config()
    config.num_epochs = 30.0
    config.init_ema = from_ema

    config.model.name = f"convnext_{size}"
    config.model.drop_path = drop_path
    config.model.head_init_scale = 1e-3

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 384
    config.data.global_batch = 512
    config.data.per_device_batch = 32
    config.data.workers = -1
    config.data.threads = 2

    config.augment.auto_augment = "rand-m9-mstd0.5-inc1"
    config.augment.erasing = 0.25

    config.optim.lr = 5e-5
    config.optim.min_lr = 1e-6
    config.optim.warmup_epochs = 0.0
    config.optim.weight_decay = 1e-8
    config.optim.layer_decay = 0.7
    config.optim.label_smoothing = 0.1
    config.optim.ema_decay = 0.0
    return config
