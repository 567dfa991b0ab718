"""Detectors as mmdetection's files have them: names, layouts, and what is said beside them."""

from detection import torch_detector
from oracles import torch

# The backbone of the registry's smallest row, under narrow heads.
WIDTHS = {"fpn_channels": 16, "head_features": 32}
CLASSES = 5
KINDS = ("mask_rcnn", "cascade_mask_rcnn")
FORMATS = ("facebook", "mmdet")
COUNTER = ".num_batches_tracked"

# Parts of Facebook's names, and what they are in mmpretrain's backbone.
_MMPRETRAIN = {
    ".dwconv.": ".depthwise_conv.",
    ".pwconv1.": ".pointwise_conv1.",
    ".pwconv2.": ".pointwise_conv2.",
}


def build(kind, depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), **settings):
    """A detector with random weights, in float32, that is recognised by its shapes."""
    own = {"kernel": 7, "channels": WIDTHS["fpn_channels"], "features": WIDTHS["head_features"]}
    settings = torch_detector.Settings(
        kind.startswith("cascade"), depths=depths, dims=dims, **own | settings
    )
    return torch_detector.Detector(settings, seed=1).float()


def state_of(model, format):
    """A model's tensors under the format's names."""
    found = {}
    for name, tensor in model.state_dict().items():
        if format == "mmdet" and name.startswith("backbone."):
            for part, other in _MMPRETRAIN.items():
                name = name.replace(part, other)
        found[name] = tensor
    return found


NAMES = ("person", "dog", "zebra", "kite", "tv")

_PIPELINE = """
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(1333, 800),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(
                type='Normalize',
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
                to_rgb=True),
            dict(type='Pad', size_divisor=32),
            dict(type='Collect', keys=['img'])
        ])
]
optimizer = dict(paramwise_cfg={'decay_rate': 0.7}, lr=2e-4)
"""
_SHARED = """
    pretrained=None,
    backbone=dict(
        type='ConvNeXt', in_chans=3, depths=[3, 3, 9, 3], dims=[96, 192, 384, 768],
        drop_path_rate=0.4, layer_scale_init_value=1.0, out_indices=[0, 1, 2, 3]),
    neck=dict(type='FPN', in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=256, feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict({rpn_loss}, loss_weight=1.0)),
"""
_EXTRACTORS = """
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256, featmap_strides=[4, 8, 16, 32]),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256, featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(
            type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)),
"""
_BOX_HEAD = """
            dict(
                {head}, in_channels=256, fc_out_channels=1024, roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[{xy}, {xy}, {wh}, {wh}]),
                reg_class_agnostic=False,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict({loss}))"""
_TESTS = """
    test_cfg=dict(
        rpn=dict(
            nms_across_levels=False, nms_pre=1000, nms_post=1000, max_per_img=1000,
            nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100,
            mask_thr_binary=0.5)))
"""
_TRAINS = """
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3,
                match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1,
                add_gt_as_proposals=False),
            allowed_border={border}, pos_weight=-1, debug=False),
        rpn_proposal=dict(
            nms_across_levels=False, nms_pre=2000, nms_post={after}, max_per_img={after},
            nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn={rcnn}),
"""
_RCNN = """
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr={iou}, neg_iou_thr={iou},
                    min_pos_iou={iou}, match_low_quality={low}, ignore_iof_thr=-1),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1,
                    add_gt_as_proposals=True),
                mask_size=28, pos_weight=-1, debug=False)"""


def _mask_rcnn():
    head = _BOX_HEAD.format(
        head="type='Shared2FCBBoxHead'", xy=0.1, wh=0.2, loss="type='L1Loss', loss_weight=1.0"
    )
    return (
        "model = dict(\n    type='MaskRCNN',"
        + _SHARED.format(rpn_loss="type='L1Loss'")
        + f"    roi_head=dict(\n        type='StandardRoIHead',{_EXTRACTORS}"
        + f"        bbox_head={head.strip()}),"
        + _TRAINS.format(border=-1, after=1000, rcnn=_RCNN.format(iou=0.5, low=True).strip())
    )


def _cascade():
    head = "type='ConvFCBBoxHead', num_shared_convs=4, num_shared_fcs=1, conv_out_channels=256"
    heads = ",".join(
        _BOX_HEAD.format(
            head=f"{head}, reg_decoded_bbox=True, norm_cfg=dict(type='SyncBN', requires_grad=True)",
            xy=xy,
            wh=wh,
            loss="type='GIoULoss', loss_weight=10.0",
        )
        for xy, wh in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
    )
    rcnn = ",".join(_RCNN.format(iou=iou, low=False) for iou in (0.5, 0.6, 0.7))
    return (
        "model = dict(\n    type='CascadeRCNN',"
        + _SHARED.format(rpn_loss="type='SmoothL1Loss', beta=0.1111111111111111")
        + "    roi_head=dict(\n        type='CascadeRoIHead', num_stages=3,"
        + f" stage_loss_weights=[1, 0.5, 0.25],{_EXTRACTORS}"
        + f"        bbox_head=[{heads}\n        ]),"
        + _TRAINS.format(border=0, after=2000, rcnn=f"[{rcnn}\n        ]")
    )


# The paper's settings, in the words of mmdetection 2.
CONFIG = {
    kind: body() + _TESTS + _PIPELINE
    for kind, body in zip(KINDS, (_mask_rcnn, _cascade), strict=True)
}


def checkpoint(state, kind, **meta):
    """What mmcv's runner saves of a training, after some steps."""
    counted = {
        name: torch.tensor(263_880) if name.endswith(COUNTER) else tensor
        for name, tensor in state.items()
    }
    said = {
        "env_info": "sys.platform: linux",
        "mmdet_version": "2.11.0+",
        "epoch": 36,
        "iter": 263_880,
        "config": CONFIG[kind],
        "CLASSES": NAMES,
    }
    moment = torch.zeros(3)
    return {
        "meta": said | meta,
        "state_dict": counted,
        "optimizer": {
            "state": {0: {"step": 263_880, "exp_avg": moment, "exp_avg_sq": moment}},
            "param_groups": [{"lr": 2e-6, "betas": (0.9, 0.999), "params": [0]}],
        },
    }
