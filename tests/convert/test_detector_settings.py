"""What is said beside the weights of a detector: what it computes, sizes of images, classes."""

import inspect

import pytest
from detector_originals import CONFIG, KINDS

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.convert import config_text, detector_keys, detector_settings
from convnext_jax.convert.formats import DIALECTS
from convnext_jax.detection import cascade, mask_rcnn, rpn
from convnext_jax.detection.detector import Detector
from convnext_jax.errors import InputError

DIALECT = next(dialect for dialect in DIALECTS if dialect.name == "facebook, Mask R-CNN")
MODEL = {kind: f"{kind}_convnext_tiny" for kind in KINDS}
CLASSES = {"mask_rcnn": mask_rcnn.MaskRCNN, "cascade_mask_rcnn": cascade.CascadeMaskRCNN}


def changed(kind, before, after):
    assert before in CONFIG[kind]
    return CONFIG[kind].replace(before, after)


def read(config, kind="mask_rcnn", key="config"):
    return detector_settings.read_config({"meta": {key: config}}, MODEL[kind])


def test_what_is_compared_is_what_the_model_has():
    """The tables' numbers are stated again in the model, above this package."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(Detector.__init__).parameters.items()
    }
    for argument, usual in detector_keys.TAKEN.values():
        assert defaults[argument] == usual, argument
    stds = [stage.stds for stage in cascade.STAGES]
    stages = detector_keys.STAGES
    assert stages["roi_head.bbox_head.bbox_coder.target_stds"] == stds
    assert stds[0] == mask_rcnn.STDS
    for kind, model in CLASSES.items():
        assert detector_keys.AFTER_TRAIN[kind] == model.AFTER_TRAIN
    thresholds = [stage.threshold for stage in cascade.STAGES]
    assert stages["train_cfg.rcnn.assigner.pos_iou_thr"] == thresholds
    assert detector_keys.COMPUTES["test_cfg.rpn.nms.iou_threshold"] == rpn.NMS_THRESHOLD
    also = detector_keys.TRAINS_ALSO["cascade_mask_rcnn"]
    assert also["roi_head.stage_loss_weights"] == tuple(s.weight for s in cascade.STAGES)
    assert also["rpn_head.loss_bbox.beta"] == cascade.CascadeMaskRCNN.RPN_BETA


@pytest.mark.parametrize("key", ["config", "cfg"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_paper_s_settings_are_the_model_s(kind, key):
    assert read(CONFIG[kind], kind, key) == ({}, [])
    assert detector_settings.read_config({}, MODEL[kind]) == ({}, [])


@pytest.mark.parametrize(
    ("before", "after", "overrides"),
    [
        ("score_thr=0.05", "score_thr=0.001", {"score_threshold": 0.001}),
        (
            "0.5), max_per_img=100",
            "0.6), max_per_img=300",
            {"nms_threshold": 0.6, "detections": 300},
        ),
        ("nms_pre=1000", "nms_pre=500", {"rpn_before_test": 500}),
        ("nms_pre=2000", "nms_pre=4000", {"rpn_before_train": 4000}),
        ("num=512", "num=256", {"roi_samples": 256}),
        ("num=256", "num=128", {"rpn_samples": 128}),
        # Of no meaning in mmdetection 2.11.
        ("nms_post=1000", "nms_post=7", {}),
    ],
)
def test_settings_that_the_model_has_too_are_taken_over(before, after, overrides):
    assert read(changed("mask_rcnn", before, after)) == (overrides, [])


def test_how_many_proposals_training_takes():
    config = CONFIG["cascade_mask_rcnn"].replace("max_per_img=2000", "max_per_img=1000")
    assert read(config, "cascade_mask_rcnn").overrides == {"rpn_after_train": 1000}


REFUSED = [
    ("mask_rcnn", "scales=[8]", "scales=[4]", "`rpn_head.anchor_generator.scales` (4,)"),
    ("mask_rcnn", "0.5, 1.0, 2.0", "0.3, 1.0, 3.0", "ratios` (0.3, 1.0, 3.0)"),
    ("mask_rcnn", "num_outs=5", "num_outs=6", "`neck.num_outs` 6"),
    ("mask_rcnn", "type='FPN'", "type='PAFPN'", "`neck.type` PAFPN"),
    ("mask_rcnn", "type='RoIAlign'", "type='RoIPool'", "roi_layer.type` RoIPool"),
    ("mask_rcnn", "sampling_ratio=0", "sampling_ratio=2", "sampling_ratio` 2"),
    ("mask_rcnn", "0.1, 0.1, 0.2, 0.2", "1.0, 1.0, 1.0, 1.0", "target_stds` (1.0, 1.0, 1.0, 1.0)"),
    ("mask_rcnn", "agnostic=False", "agnostic=True", "reg_class_agnostic` True"),
    (
        "mask_rcnn",
        "type='nms', iou_threshold=0.5",
        "type='soft_nms', iou_threshold=0.5",
        "soft_nms",
    ),
    ("mask_rcnn", "mask_thr_binary=0.5", "mask_thr_binary=0.4", "mask_thr_binary` 0.4"),
    ("mask_rcnn", "type='MaskRCNN'", "type='PointRend'", "`type` PointRend"),
    (
        "mask_rcnn",
        "type='nms', iou_threshold=0.7), min_bbox_size=0),\n        rcnn=dict(\n            score",
        "type='nms', iou_threshold=0.8), min_bbox_size=0),\n        rcnn=dict(\n            score",
        "`test_cfg.rpn.nms.iou_threshold` 0.8",
    ),
    ("cascade_mask_rcnn", "num_stages=3", "num_stages=2", "`roi_head.num_stages` 2"),
    (
        "cascade_mask_rcnn",
        "0.05, 0.05, 0.1, 0.1",
        "0.1, 0.1, 0.2, 0.2",
        "`roi_head.bbox_head.1.bbox_coder.target_stds` (0.1, 0.1, 0.2, 0.2)",
    ),
]


@pytest.mark.parametrize(("kind", "before", "after", "words"), REFUSED)
def test_settings_of_another_computation_are_refused(kind, before, after, words):
    with pytest.raises(InputError) as raised:
        read(changed(kind, before, after), kind)
    message = str(raised.value)
    assert words in message and f"but {MODEL[kind]} has" in message and "\n" not in message


def test_one_head_for_all_stages_has_not_the_stds_of_each():
    config = (
        "model = dict(roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[.1, .1, .2, .2]))))"
    )
    assert read(config) == ({}, [])
    with pytest.raises(InputError, match="has .* and .*0.033"):
        read(config, "cascade_mask_rcnn")


def test_stages_with_counts_of_their_own():
    config = CONFIG["cascade_mask_rcnn"].replace("num=512", "num=256", 1)
    with pytest.raises(InputError, match=r"`train_cfg.rcnn.0.sampler.num` 256 and .* one `roi_sam"):
        read(config, "cascade_mask_rcnn")


def test_other_training_is_told():
    config = changed(
        "mask_rcnn", "type='L1Loss', loss_weight=1.0", "type='GIoULoss', loss_weight=2.0"
    )
    overrides, (note,) = read(config)
    assert overrides == {} and "trained with other settings" in note
    assert "`roi_head.bbox_head.loss_bbox.type` GIoULoss (L1Loss)" in note
    config = changed("mask_rcnn", "pos_iou_thr=0.5", "pos_iou_thr=0.55")
    assert "`train_cfg.rcnn.assigner.pos_iou_thr` 0.55 (0.5)" in read(config).notes[0]


def test_what_is_not_known_is_told():
    config = changed("mask_rcnn", "scales=[8]", "scales=[8], basesize_ratio=[1]")
    overrides, (note,) = read(config)
    assert overrides == {} and "not compared" in note
    assert "`rpn_head.anchor_generator.basesize_ratio` ((1,))" in note
    (note,) = read(changed("mask_rcnn", "score_thr=0.05", "score_thr=threshold")).notes
    assert "`test_cfg.rcnn.score_thr` (threshold)" in note


@pytest.mark.parametrize("config", ["this is (no Python", "(" * 5000, "model = build()", None, 7])
def test_configs_that_say_nothing(config):
    overrides, notes = read(config)
    assert overrides == {} and len(notes) == (config == "model = build()")


def test_leaves():
    text = "model = dict(a=[1, 2], b=dict({'c': {'d': 3}}, **others), e=[dict(f=4), {'f': (5, 6)}])"
    found = config_text.leaves(
        config_text.variable(config_text.parse({"meta": {"cfg": text}}), "model")
    )
    assert found == {
        "a": (1, 2),
        "b": config_text.Unread("others"),
        "b.c.d": 3,
        "e.0.f": 4,
        "e.1.f": (5, 6),
    }


def fed(name="x.pth", config=None, model=MODEL["mask_rcnn"]):
    settings = {} if config is None else {"meta": {"config": config}}
    return detector_settings.preprocessing_of(name, model, 80, DIALECT, settings)


def test_sizes_of_images():
    feeding, notes = fed(config=CONFIG["mask_rcnn"])
    assert (feeding.input_size, feeding.longest_side, feeding.crop_mode) == (800, 1333, "fit")
    # What stands for pixels in 0..255 is the same as our own for 0..1.
    assert (feeding.mean, feeding.std) == (IMAGENET_MEAN, IMAGENET_STD) and notes == []
    feeding, notes = fed(config=changed("mask_rcnn", "(1333, 800)", "(640, 512)"))
    assert (feeding.input_size, feeding.longest_side) == (512, 640) and notes == []
    # mmdetection 3's.
    feeding, notes = fed(
        config="test_pipeline = [dict(type='Resize', scale=(1000, 600), keep_ratio=True)]"
    )
    assert (feeding.input_size, feeding.longest_side) == (600, 1000) and notes == []
    several = "test_pipeline = [dict(img_scale=(1333, 800)), dict(img_scale=(1000, 600))]"
    for config in (None, several):
        feeding, (note,) = fed(config=config)
        assert (feeding.input_size, feeding.longest_side) == (800, 1333)
        assert "neither its config nor its name says" in note
    assert fed("w/mask_rcnn_convnext_tiny_1k_3x.pth")[1] == []
    config = changed("mask_rcnn", "123.675, 116.28, 103.53", "127.5, 127.5, 127.5")
    assert fed(config=config)[0].mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("to_rgb=True", "to_rgb=False", "`to_rgb` False"),
        ("keep_ratio=True", "keep_ratio=False", "`keep_ratio` False"),
        ("size_divisor=32", "size_divisor=64", "`size_divisor` 64"),
    ],
)
def test_images_fed_in_ways_that_there_are_none_of(before, after, words):
    with pytest.raises(InputError, match=words):
        fed(config=changed("mask_rcnn", before, after))


def test_licences():
    name, model = "https://h/coco/mask_rcnn_convnext_tiny_1k_3x.pth?x=1", MODEL["mask_rcnn"]
    assert detector_settings.licence_of(name, model, 80) == "MIT"
    assert detector_settings.licence_of(name, model, 3) is None
    assert detector_settings.licence_of("mine.pth", model, 80) is None


def test_class_names():
    def names(meta, count=2):
        return config_text.class_names_of({"meta": meta}, count)

    assert names({"CLASSES": ["cat", "dog"]}) == ("cat", "dog")
    assert names({"dataset_meta": {"classes": ["cat", "dog"]}}) == ("cat", "dog")
    assert names({"dataset_meta": {"CLASSES": ["cat", "dog"]}}) == ("cat", "dog")
    # In mmdetection `('cat')` is a string.
    assert names({"CLASSES": "cat"}, 1) == ("cat",)
    assert names({"CLASSES": None}) is None
    with pytest.raises(InputError, match="its `meta` names 2 classes, but the weights are for 3"):
        names({"CLASSES": ["cat", "dog"]}, 3)
