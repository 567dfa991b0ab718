"""Mask R-CNN and Cascade Mask R-CNN over ConvNeXt on COCO, as the paper trains them (appendix A.3).

    python -m convnext_jax.data.prepare coco2017 --manual_dir=/downloads/coco --data_dir=/data/tfds
    ARGS="--config configs/coco.py:cascade_tiny --workdir runs/coco --config.data.dir=/data/tfds
          --config.init_from=convnext_tiny.fb_in1k"
    python -m convnext_jax.main $ARGS                                      # one host with GPUs
    sbatch --nodes=2 launch/slurm.sbatch $ARGS                             # several, on Slurm
    launch/tpu_pod.sh train --name NAME --zone ZONE --type v4-16 -- $ARGS  # a TPU slice

The part after the colon is a row of the paper's table, with the weights to start from and the
average precision of boxes and of masks that it reached:

    mask_tiny          convnext_tiny.fb_in1k      46.2  41.7
    cascade_tiny       convnext_tiny.fb_in1k      50.4  43.7
    cascade_small      convnext_small.fb_in1k     51.9  45.0
    cascade_base       convnext_base.fb_in1k      52.7  45.6
    cascade_base_22k   convnext_base.fb_in22k     54.0  46.9
    cascade_large_22k  convnext_large.fb_in22k    54.8  47.6
    cascade_xlarge_22k convnext_xlarge.fb_in22k   55.2  47.7

36 epochs of batches of 16 images, a tenth of the learning rate from epoch 27 and again from 33 on.
Losses are means over all 16 images (the reference: over the 2 of each GPU), and so are BatchNorm's
statistics in the heads of a cascade, on any number of devices that divides 16; with more images in
a step than the devices hold at once (`--config.data.per_device_batch`) they are of a part of them,
which the start says.
"""

from ml_collections import ConfigDict

from convnext_jax.config import default_config
from convnext_jax.errors import require_one_of

# Model, and the paper's learning rate, its decay over the layers, and drop path.
ROWS = {
    "mask_tiny": ("mask_rcnn_convnext_tiny", 1e-4, 0.95, 0.4),
    "cascade_tiny": ("cascade_mask_rcnn_convnext_tiny", 2e-4, 0.7, 0.4),
    "cascade_small": ("cascade_mask_rcnn_convnext_small", 2e-4, 0.7, 0.6),
    "cascade_base": ("cascade_mask_rcnn_convnext_base", 2e-4, 0.8, 0.7),
    "cascade_base_22k": ("cascade_mask_rcnn_convnext_base", 1e-4, 0.8, 0.6),
    "cascade_large_22k": ("cascade_mask_rcnn_convnext_large", 1e-4, 0.7, 0.7),
    "cascade_xlarge_22k": ("cascade_mask_rcnn_convnext_xlarge", 1e-4, 0.7, 0.8),
}


def get_config(row: str = "cascade_tiny") -> ConfigDict:
    """The run of one row; raises InputError for any other."""
    require_one_of("row", row, ROWS)
    name, learning_rate, layer_decay, drop_path = ROWS[row]
    config = default_config()
    # The final weights of ImageNet, not their moving average.
    config.init_ema = False
    config.num_epochs = 36.0
    config.eval_every_epochs = 3.0

    config.model.name = name
    config.model.drop_path = drop_path

    config.data.name = "coco2017"
    config.data.eval_split = "validation"
    config.data.global_batch = 16
    config.data.workers = -1
    config.data.threads = 2

    config.optim.lr = learning_rate
    config.optim.schedule = "step"
    config.optim.milestones = (27, 33)
    config.optim.warmup_steps = 500
    config.optim.weight_decay = 0.05
    config.optim.layer_decay = layer_decay
    config.optim.label_smoothing = 0.0
    config.optim.ema_decay = 0.0  # the reference keeps no average of detectors
    return config
