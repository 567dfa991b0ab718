"""UPerNets of transformers, and the files that three publishers would make of them."""

from oracles import torch
from segmentation import hf_upernet

# Sizes of the registry's smallest row, with narrow heads.
DEPTHS, DIMS, CLASSES = (2, 2, 6, 2), (40, 80, 160, 320), 5
DECODER, AUXILIARY = 16, 12
MODEL = "upernet_convnext_atto"
WIDTHS = {"decoder_channels": DECODER, "auxiliary_channels": AUXILIARY}

# Parts of transformers' names, and what they are in Facebook's files.
_FACEBOOK = {
    "backbone.embeddings.patch_embeddings.": "backbone.downsample_layers.0.0.",
    "backbone.embeddings.layernorm.": "backbone.downsample_layers.0.1.",
    "backbone.encoder.stages.1.downsampling_layer.": "backbone.downsample_layers.1.",
    "backbone.encoder.stages.2.downsampling_layer.": "backbone.downsample_layers.2.",
    "backbone.encoder.stages.3.downsampling_layer.": "backbone.downsample_layers.3.",
    "backbone.encoder.stages.0.layers.": "backbone.stages.0.",
    "backbone.encoder.stages.1.layers.": "backbone.stages.1.",
    "backbone.encoder.stages.2.layers.": "backbone.stages.2.",
    "backbone.encoder.stages.3.layers.": "backbone.stages.3.",
    "backbone.hidden_states_norms.stage1.": "backbone.norm0.",
    "backbone.hidden_states_norms.stage2.": "backbone.norm1.",
    "backbone.hidden_states_norms.stage3.": "backbone.norm2.",
    "backbone.hidden_states_norms.stage4.": "backbone.norm3.",
    ".layernorm.": ".norm.",
    ".layer_scale_parameter": ".gamma",
    ".grn.weight": ".grn.gamma",
    ".grn.bias": ".grn.beta",
    ".batch_norm.": ".bn.",
    ".classifier.": ".conv_seg.",
}
_MMSEG = _FACEBOOK | {
    ".dwconv.": ".depthwise_conv.",
    ".pwconv1.": ".pointwise_conv1.",
    ".pwconv2.": ".pointwise_conv2.",
}
RENAMED = {"hf": {}, "facebook": _FACEBOOK, "mmseg": _MMSEG}


def names(state, format):
    """For each of transformers' names the format's."""
    found = {}
    for theirs in state:
        name = theirs
        for part, other in RENAMED[format].items():
            name = name.replace(part, other)
        found[theirs] = name
    assert len(set(found.values())) == len(found)
    return found


def state_of(model, format):
    """A model's tensors under the format's names; mmpretrain's GRN has fewer axes."""
    state = model.state_dict()
    return {
        name: state[theirs].flatten() if format == "mmseg" and ".grn." in name else state[theirs]
        for theirs, name in names(state, format).items()
    }


def small():
    """A model that is recognised by its shapes."""
    return hf_upernet.build(DEPTHS, DIMS, CLASSES, DECODER, AUXILIARY)


CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained=None,
    backbone=dict(type='ConvNeXt', out_indices=[0, 1, 2, 3], layer_scale_init_value=1.0),
    decode_head=dict(
        type='UPerHead', pool_scales=(1, 2, 3, 6), dropout_ratio=0.1, align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)))
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
crop_size = (640, 640)
train_pipeline = [
    dict(type='Resize', img_scale=(2560, 640), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=(640, 640), cat_max_ratio=0.75),
    dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
]
test_pipeline = [
    dict(
        type='MultiScaleFlipAug',
        img_scale=(2560, 640),
        flip=False,
        transforms=[dict(type='Resize', keep_ratio=True)])
]
optimizer = dict(paramwise_cfg={'decay_rate': 0.9}, lr=1e-4)
"""
NAMES = ("wall", "building", "sky", "floor", "bed ")


def checkpoint(state, **meta):
    """What mmcv's runner saves of a training, after some steps."""
    counted = {
        name: torch.tensor(160_000) if name.endswith("num_batches_tracked") else tensor
        for name, tensor in state.items()
    }
    said = {
        "env_info": "sys.platform: linux",
        "seed": 0,
        "exp_name": "upernet.py",
        "epoch": 127,
        "iter": 160_000,
        "hook_msgs": {},
        "config": CONFIG,
        "CLASSES": NAMES,
        "PALETTE": [[120, 120, 120], [180, 120, 120], [6, 230, 230], [80, 50, 50], [4, 200, 3]],
    }
    moment = torch.zeros(3)
    return {
        "meta": said | meta,
        "state_dict": counted,
        "optimizer": {
            "state": {0: {"step": 160_000, "exp_avg": moment, "exp_avg_sq": moment}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
        },
    }
