"""Fine-tuning models trained on ImageNet-22K to ImageNet-1K.

    ARGS="--config configs/finetune_22k_1k.py:base_224 --workdir runs/ft
        --config.init_from=runs/in22k --config.data.dir=/data/tfds"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=4 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-64 -- $ARGS  # a TPU slice

On a slice checkpoints go to a bucket, --config.checkpoint.dir=gs://NAME/DIR; see docs/hardware.md.

The part after the colon is a size and a resolution: base, large or xlarge; 224 or 384 (base_224 is
the default). The paper's top-1 at 224 pixels: 85.8, 86.6 and 87.0 % (of the moving average); at
384: 86.8, 87.5 and 87.8 %. The head, for other classes, is new.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Probability of dropping the last block, and decay of the moving average (0: there is none).
SIZES = {"base": (0.2, 0.0), "large": (0.3, 0.0), "xlarge": (0.4, 0.9999)}
RUNS = [f"{size}_{resolution}" for size in SIZES for resolution in (224, 384)]


def get_config(run: str = "base_224") -> ConfigDict:
    """One of the runs; raises InputError for any other."""
    require_one_of("run", run, RUNS)
    size, resolution = run.split("_")
    config = default_config()
    config.num_epochs = 30.0

    config.model.name = f"convnext_{size}"
    config.model.drop_path, config.optim.ema_decay = SIZES[size]
    config.model.head_init_scale = 1e-3

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = int(resolution)
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
    config.optim.layer_decay = 0.8
    config.optim.label_smoothing = 0.1
    return config
