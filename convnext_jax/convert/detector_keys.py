"""Keys of mmdetection's configs, and what they are in our models.

Keys are paths below `model`, without the numbers of stages. Sources: the paper's configs, and the
defaults of mmdetection 2.11.
"""

import re
from typing import Any

# Those that each stage of a cascade has a value of its own for; Mask R-CNN has the first.
STAGES: dict[str, list[Any]] = {
    "roi_head.bbox_head.bbox_coder.target_stds": [
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ],
    "train_cfg.rcnn.assigner.pos_iou_thr": [0.5, 0.6, 0.7],
    "train_cfg.rcnn.assigner.neg_iou_thr": [0.5, 0.6, 0.7],
    "train_cfg.rcnn.assigner.min_pos_iou": [0.5, 0.6, 0.7],
}
_EXTRACTOR = {
    "type": "SingleRoIExtractor",
    "featmap_strides": (4, 8, 16, 32),
    "finest_scale": 56,
    "roi_layer.type": "RoIAlign",
    "roi_layer.sampling_ratio": 0,
    "roi_layer.aligned": True,
}
_CODER = {
    "type": "DeltaXYWHBBoxCoder",
    "target_means": (0.0, 0.0, 0.0, 0.0),
    "clip_border": True,
}
# What shapes do not show, and would compute something else.
COMPUTES: dict[str, Any] = {
    "backbone.out_indices": (0, 1, 2, 3),
    "backbone.act_cfg.type": "GELU",
    "backbone.norm_cfg.eps": 1e-6,
    "data_preprocessor.pad_size_divisor": 32,
    "neck.type": "FPN",
    "neck.num_outs": 5,
    "neck.start_level": 0,
    "neck.end_level": -1,
    "neck.add_extra_convs": False,
    "neck.upsample_cfg.mode": "nearest",
    "rpn_head.type": "RPNHead",
    "rpn_head.num_convs": 1,
    "rpn_head.anchor_generator.type": "AnchorGenerator",
    "rpn_head.anchor_generator.scales": (8,),
    "rpn_head.anchor_generator.ratios": (0.5, 1.0, 2.0),
    "rpn_head.anchor_generator.strides": (4, 8, 16, 32, 64),
    "rpn_head.anchor_generator.center_offset": 0,
    "rpn_head.bbox_coder.target_stds": (1.0, 1.0, 1.0, 1.0),
    "rpn_head.loss_cls.use_sigmoid": True,
    "roi_head.bbox_roi_extractor.roi_layer.output_size": 7,
    "roi_head.mask_roi_extractor.roi_layer.output_size": 14,
    "roi_head.bbox_head.reg_class_agnostic": False,
    "roi_head.bbox_head.roi_feat_size": 7,
    "roi_head.bbox_head.with_avg_pool": False,
    "roi_head.bbox_head.loss_cls.type": "CrossEntropyLoss",  # others have other probabilities
    "roi_head.bbox_head.loss_cls.use_sigmoid": False,
    "roi_head.mask_head.type": "FCNMaskHead",
    "roi_head.mask_head.class_agnostic": False,
    "roi_head.mask_head.upsample_cfg.type": "deconv",
    "test_cfg.rpn.nms.type": "nms",
    "test_cfg.rpn.nms.iou_threshold": 0.7,
    "test_cfg.rpn.nms_thr": 0.7,
    "test_cfg.rpn.nms_across_levels": False,
    "test_cfg.rpn.min_bbox_size": 0,
    "test_cfg.rcnn.nms.type": "nms",
    "test_cfg.rcnn.mask_thr_binary": 0.5,
    **{f"roi_head.bbox_roi_extractor.{key}": value for key, value in _EXTRACTOR.items()},
    **{f"roi_head.mask_roi_extractor.{key}": value for key, value in _EXTRACTOR.items()},
    **{f"rpn_head.bbox_coder.{key}": value for key, value in _CODER.items()},
    **{f"roi_head.bbox_head.bbox_coder.{key}": value for key, value in _CODER.items()},
}
# What further training would do otherwise.
TRAINS: dict[str, Any] = {
    "rpn_head.loss_cls.type": "CrossEntropyLoss",
    "rpn_head.loss_cls.loss_weight": 1.0,
    "rpn_head.loss_bbox.loss_weight": 1.0,
    "roi_head.bbox_head.loss_cls.loss_weight": 1.0,
    "roi_head.mask_head.loss_mask.type": "CrossEntropyLoss",
    "roi_head.mask_head.loss_mask.use_mask": True,
    "roi_head.mask_head.loss_mask.loss_weight": 1.0,
    "train_cfg.rpn.assigner.type": "MaxIoUAssigner",
    "train_cfg.rpn.assigner.pos_iou_thr": 0.7,
    "train_cfg.rpn.assigner.neg_iou_thr": 0.3,
    "train_cfg.rpn.assigner.min_pos_iou": 0.3,
    "train_cfg.rpn.assigner.match_low_quality": True,
    "train_cfg.rpn.assigner.ignore_iof_thr": -1,
    "train_cfg.rpn.sampler.type": "RandomSampler",
    "train_cfg.rpn.sampler.pos_fraction": 0.5,
    "train_cfg.rpn.sampler.neg_pos_ub": -1,
    "train_cfg.rpn.sampler.add_gt_as_proposals": False,
    "train_cfg.rpn.pos_weight": -1,
    "train_cfg.rpn_proposal.nms.type": "nms",
    "train_cfg.rpn_proposal.nms.iou_threshold": 0.7,
    "train_cfg.rpn_proposal.nms_thr": 0.7,
    "train_cfg.rpn_proposal.nms_across_levels": False,
    "train_cfg.rpn_proposal.min_bbox_size": 0,
    "train_cfg.rcnn.assigner.type": "MaxIoUAssigner",
    "train_cfg.rcnn.assigner.ignore_iof_thr": -1,
    "train_cfg.rcnn.sampler.type": "RandomSampler",
    "train_cfg.rcnn.sampler.neg_pos_ub": -1,
    "train_cfg.rcnn.sampler.add_gt_as_proposals": True,
    "train_cfg.rcnn.mask_size": 28,
    "train_cfg.rcnn.pos_weight": -1,
}
# In which the two differ.
COMPUTES_ALSO: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"type": "MaskRCNN", "roi_head.type": "StandardRoIHead"},
    "cascade_mask_rcnn": {
        "type": "CascadeRCNN",
        "roi_head.type": "CascadeRoIHead",
        "roi_head.num_stages": 3,
    },
}
TRAINS_ALSO: dict[str, dict[str, Any]] = {
    "mask_rcnn": {
        "rpn_head.loss_bbox.type": "L1Loss",
        "roi_head.bbox_head.reg_decoded_bbox": False,
        "roi_head.bbox_head.loss_bbox.type": "L1Loss",
        "roi_head.bbox_head.loss_bbox.loss_weight": 1.0,
        "train_cfg.rpn.allowed_border": -1,
        "train_cfg.rcnn.assigner.match_low_quality": True,
    },
    "cascade_mask_rcnn": {
        "rpn_head.loss_bbox.type": "SmoothL1Loss",
        "rpn_head.loss_bbox.beta": 1 / 9,
        "roi_head.stage_loss_weights": (1, 0.5, 0.25),
        "roi_head.bbox_head.reg_decoded_bbox": True,
        "roi_head.bbox_head.loss_bbox.type": "GIoULoss",
        "roi_head.bbox_head.loss_bbox.loss_weight": 10.0,
        "train_cfg.rpn.allowed_border": 0,
        "train_cfg.rcnn.assigner.match_low_quality": False,
    },
}
# What our models take as an argument, and what that is without being given.
TAKEN: dict[str, tuple[str, float]] = {
    "test_cfg.rpn.nms_pre": ("rpn_before_test", 1000),
    "test_cfg.rpn.max_per_img": ("rpn_after_test", 1000),
    "test_cfg.rpn.max_num": ("rpn_after_test", 1000),
    "test_cfg.rcnn.score_thr": ("score_threshold", 0.05),
    "test_cfg.rcnn.nms.iou_threshold": ("nms_threshold", 0.5),
    "test_cfg.rcnn.nms.iou_thr": ("nms_threshold", 0.5),
    "test_cfg.rcnn.max_per_img": ("detections", 100),
    "train_cfg.rpn.sampler.num": ("rpn_samples", 256),
    "train_cfg.rpn_proposal.nms_pre": ("rpn_before_train", 2000),
    "train_cfg.rcnn.sampler.num": ("roi_samples", 512),
    "train_cfg.rcnn.sampler.pos_fraction": ("roi_positive_fraction", 0.25),
}
AFTER_TRAIN = {"mask_rcnn": 1000, "cascade_mask_rcnn": 2000}
AFTER_TRAIN_KEYS = ("train_cfg.rpn_proposal.max_per_img", "train_cfg.rpn_proposal.max_num")
# What shapes show, or what changes nothing that is computed; `nms_post` nothing in mmdetection 2.11
# either.
NO_MATTER = re.compile(
    r"backbone\..*|pretrained|(.*\.)?init_cfg(\..*)?|data_preprocessor\.(type|mean|std|pad_mask)"
    r"|data_preprocessor\.bgr_to_rgb"  # looked at with the images
    r"|.*\.(in_channels|out_channels|feat_channels|num_classes|fc_out_channels|conv_out_channels)"
    r"|roi_head\.(bbox|mask)_head\.(num_\w+|norm_cfg\..*|conv_cfg)|roi_head\.bbox_head\.type"
    r"|(train|test)_cfg\.(.*\.)?(nms_post|debug|gpu_assign_thr|max_mem\w*)"
)
