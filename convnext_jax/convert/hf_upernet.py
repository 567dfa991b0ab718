"""Settings with which transformers opens a UPerNet over ConvNeXt."""

from collections.abc import Mapping
from typing import Any

from convnext_jax.convert.published import PIL_FILTERS
from convnext_jax.convert.recognise import Structure
from convnext_jax.models.variants import Preprocessing

ARCHITECTURE = "UperNetForSemanticSegmentation"


def upernet_config(backbone: Mapping[str, Any], found: Structure) -> dict[str, Any]:
    """The content of `config.json`, but for the names of the classes.

    Args:
      backbone: the content that it would have for the backbone alone.
      found: the model's structure.
    """
    stages = [f"stage{stage + 1}" for stage in range(len(found.depths))]
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "upernet",
        "backbone_config": {**backbone, "out_features": stages},
        "hidden_size": found.decoder_channels,
        "pool_scales": [1, 2, 3, 6],
        "use_auxiliary_head": True,
        "auxiliary_loss_weight": 0.4,
        # Written out because its default was another before transformers 5.
        "auxiliary_in_channels": found.dims[2],
        "auxiliary_channels": found.auxiliary_channels,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        "loss_ignore_index": 255,
        "dtype": "float32",
    }


def upernet_preprocessor(feed: Preprocessing) -> dict[str, Any]:
    """The content of `preprocessor_config.json`.

    It squashes an image to one window, as it does for the published UPerNets: transformers has no
    processor that cuts windows out.
    """
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": feed.input_size, "width": feed.input_size},
        "resample": PIL_FILTERS[feed.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(feed.mean),
        "image_std": list(feed.std),
        # Labels of this project's datasets are reduced as they are read.
        "do_reduce_labels": False,
    }
