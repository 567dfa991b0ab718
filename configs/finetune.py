"""Fine-tuning any weights on any dataset, with the values of the paper's 22K to 1K runs.

    python -m convnext_jax.main --config configs/finetune.py:tiny --workdir runs/ft \
        --config.init_from=runs/tiny --config.data.dir=/data/tfds --config.data.name=NAME \
        --config.data.eval_split=SPLIT

The part after the colon is the size: tiny (the default), small, base, large, xlarge. `init_from`
takes a run's workdir, converted weights, a PyTorch file or `hf-hub:organisation/name`; the head is
new where the number of classes differs. The paper's own runs are in finetune_1k.py and
finetune_22k_1k.py.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Probability of dropping the last block; tiny's and small's, which the paper lacks, are base's.
DROP_PATH = {"tiny": 0.2, "small": 0.2, "base": 0.2, "large": 0.3, "xlarge": 0.4}


def get_config(size: str = "tiny") -> ConfigDict:
    """The run of one size; raises InputError for any other."""
    require_one_of("size", size, DROP_PATH)
    config = default_config()
    config.num_epochs = 30.0

    config.model.name = f"convnext_{size}"
    config.model.drop_path = DROP_PATH[size]
    config.model.head_init_scale = 1e-3

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.global_batch = 512
    config.data.per_device_batch = 64
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
    config.optim.ema_decay = 0.0
    return config
