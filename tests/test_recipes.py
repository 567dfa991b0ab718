"""Every config in its resolved form, as reviewable text, and against the paper's table of runs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from test_config import load

from convnext_jax import list_models, tree
from convnext_jax.config import resolve
from convnext_jax.detection.ordering import steps_per_epoch
from convnext_jax.errors import InputError
from convnext_jax.models.batch_norm import BatchNorm
from convnext_jax.models.spec import ModelSpec
from convnext_jax.optim.param_groups import layer_scales
from convnext_jax.optim.schedule import warmup_step
from convnext_jax.training.reporting import flat

GOLDEN = Path(__file__).parent / "golden" / "configs"
IMAGENET_SIZES = ("tiny", "small", "base", "large")
# Row of the paper's segmentation: model, crop, learning rate, drop path. From the recipe's table.
ADE20K = {
    "tiny": ("tiny", 512, 1e-4, 0.4),
    "small": ("small", 512, 1e-4, 0.3),
    "base": ("base", 512, 1e-4, 0.4),
    "base_22k": ("base", 640, 1e-4, 0.4),
    "large_22k": ("large", 640, 1e-4, 0.4),
    "xlarge_22k": ("xlarge", 640, 8e-5, 0.4),
}
# Row of the paper's detection: model, learning rate, its decay, drop path. From the recipe's table.
COCO = {
    "mask_tiny": ("mask_rcnn_convnext_tiny", 1e-4, 0.95, 0.4),
    "cascade_tiny": ("cascade_mask_rcnn_convnext_tiny", 2e-4, 0.7, 0.4),
    "cascade_small": ("cascade_mask_rcnn_convnext_small", 2e-4, 0.7, 0.6),
    "cascade_base": ("cascade_mask_rcnn_convnext_base", 2e-4, 0.8, 0.7),
    "cascade_base_22k": ("cascade_mask_rcnn_convnext_base", 1e-4, 0.8, 0.6),
    "cascade_large_22k": ("cascade_mask_rcnn_convnext_large", 1e-4, 0.7, 0.7),
    "cascade_xlarge_22k": ("cascade_mask_rcnn_convnext_xlarge", 1e-4, 0.7, 0.8),
}
RUNS = [
    ("digits", None),
    *(("imagenet1k", size) for size in IMAGENET_SIZES),
    *(("imagenet1k_isotropic", size) for size in ("small", "base", "large")),
    *(("imagenet22k", size) for size in ("base", "large", "xlarge")),
    *(("finetune_1k", run) for run in ("base_384", "large_384")),
    *(
        ("finetune_22k_1k", f"{size}_{resolution}")
        for size in ("base", "large", "xlarge")
        for resolution in (224, 384)
    ),
    *(
        ("finetune_folder", size)
        for size in "atto femto pico nano tiny small base large xlarge convnextv2_base".split()
    ),
    *(("finetune", size) for size in (*IMAGENET_SIZES, "xlarge")),
    *(
        ("roadmap", f"{regime}_{step}")
        for regime in ("resnet50", "resnet200")
        for step in ("enhanced_recipe", "fewer_norms", "separate_downsampling")
    ),
    ("digit_scenes_segmentation", None),
    ("segment_folder", "tiny"),
    *(("ade20k", row) for row in ADE20K),
    ("digit_scenes_detection", None),
    ("detect_coco_style", "mask_rcnn_tiny"),
    *(("coco", row) for row in COCO),
]


def resolved(name, run):
    return resolve(load(name, *([] if run is None else [run])))


@pytest.mark.parametrize("name, run", RUNS)
def test_resolved_configs_are_the_goldens(name, run):
    """To rewrite a golden: delete it and run this test twice."""
    lines = [
        f"{key} = {value!r}" for key, value in flat(dataclasses.asdict(resolved(name, run))).items()
    ]
    path = GOLDEN / (f"{name}_{run}.txt" if run else f"{name}.txt")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        pytest.fail(f"{path} was missing; it is written now, review it")
    assert lines == path.read_text().splitlines()


@pytest.mark.parametrize("row", ADE20K)
def test_segmentation_is_the_papers(row):
    config, (size, crop, learning_rate, drop_path) = resolved("ade20k", row), ADE20K[row]
    assert config.model.name == f"upernet_convnext_{size}"
    assert (config.data.image_size, config.data.global_batch, config.data.flip) == (crop, 16, 0.5)
    assert (config.optim.lr, config.model.drop_path) == (learning_rate, drop_path)
    # 20,210 images, of which the last 2 of each epoch's order are left out.
    steps = config.steps(20_210)
    assert (steps.per_epoch, steps.total, steps.warmup) == (1263, 160_000, 1500)
    assert steps.evaluate_every == 16_000
    optim, segment = config.optim, config.segmentation
    assert (optim.schedule, optim.min_lr, optim.weight_decay) == ("poly", 0, 0.05)
    assert (optim.layer_decay, optim.layer_decay_by, optim.ema_decay) == (0.9, "stages", 0)
    assert (segment.scale_min, segment.scale_max, segment.photometric) == (0.5, 2, True)
    assert (segment.dropout, segment.auxiliary_weight) == (0.1, 0.4)
    assert config.init_ema is False and optim.clip_norm == 0


@pytest.mark.parametrize("row", COCO)
def test_detection_is_the_papers(row):
    config, (name, learning_rate, layer_decay, drop_path) = resolved("coco", row), COCO[row]
    assert (config.model.name, config.model.drop_path) == (name, drop_path)
    assert (config.data.global_batch, config.data.flip, config.init_ema) == (16, 0.5, False)
    optim, detect = config.optim, config.detection
    assert (optim.lr, optim.layer_decay, optim.layer_decay_by) == (
        *(learning_rate, layer_decay),
        "blocks",
    )
    assert (optim.weight_decay, optim.clip_norm, optim.ema_decay) == (0.05, 0, 0)
    # 117,266 images have annotations.
    steps = config.steps(117_266, steps_per_epoch(117_266, 16))
    assert (steps.per_epoch, steps.total, steps.warmup) == (7331, 36 * 7331, 500)
    rate = learning_rate_of(optim, steps)
    rates = [rate(epoch * 7331 + shift) for epoch in (27, 33) for shift in (-1, 0)]
    np.testing.assert_allclose(rates, learning_rate * np.array([1, 0.1, 0.1, 0.01]), rtol=1e-6)
    assert detect.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert (detect.longest_side, detect.crops, detect.crop_short_sides) == (
        *(1333, True),
        (400, 500, 600),
    )
    assert (detect.crop_min, detect.crop_max, detect.max_objects) == (384, 600, 100)


@pytest.mark.parametrize("row", [row for row in COCO if row != "cascade_base_22k"])
def test_detection_on_images_of_ones_own_has_the_papers_rates(row):
    """Of the two rows of Cascade Mask R-CNN over ConvNeXt-B that with ImageNet-1K's weights."""
    name, learning_rate, layer_decay, drop_path = COCO[row]
    config = resolved("detect_coco_style", name)
    assert (config.optim.lr, config.optim.layer_decay) == (learning_rate, layer_decay)
    assert (config.model.name, config.model.drop_path) == (name, drop_path)


def learning_rate_of(optim, steps):
    milestones = [epoch * steps.per_epoch for epoch in optim.milestones]
    return warmup_step(
        optim.lr, total_steps=steps.total, warmup_steps=steps.warmup, milestones=milestones
    )


def test_parts_of_a_detector_learn_as_fast_as_the_paper_has_it():
    """The names that `get_num_layer_layer_wise` of the reference's detection code treats."""
    params = ModelSpec("cascade_mask_rcnn_convnext_tiny", 80).abstract_params()
    scales = dict(tree.flatten_with_names(layer_scales(params, (3, 3, 9, 3), 0.7)))
    behind = {
        "downsample_layers/0/0/kernel": 7,
        "stages/0/2/gamma": 6,
        "downsample_layers/1/1/kernel": 5,
        "stages/1/0/dwconv/kernel": 5,
        "downsample_layers/2/0/scale": 4,
        "stages/2/2/norm/bias": 4,
        "stages/2/3/norm/bias": 3,
        "stages/2/8/pwconv1/kernel": 2,
        "downsample_layers/3/1/bias": 1,
        "stages/3/2/pwconv2/kernel": 1,
        "norm0/scale": 0,
        "norm3/bias": 0,
    }
    for name, groups in behind.items():
        assert scales[f"backbone/{name}"] == pytest.approx(0.7**groups), name
    others = {name: scale for name, scale in scales.items() if not name.startswith("backbone/")}
    assert {name.split("/")[0] for name in others} == {"neck", "rpn_head", "roi_head"}
    assert set(others.values()) == {1.0}


# run: models' drop path, epochs, warm-up epochs, batch, learning rate, weight decay, layer decay,
# head init scale, mixup and cutmix, decay of the average, pixels. From the recipe's table.
TABLE = {
    "imagenet1k": (
        {"tiny": 0.1, "small": 0.4, "base": 0.5, "large": 0.5},
        (300, 20, 4096, 4e-3, 0.05, 1, 1, (0.8, 1.0), 0.9999, None),
    ),
    "imagenet1k_isotropic": (
        {"small": 0.1, "base": 0.2, "large": 0.5},
        (300, 50, 4096, 4e-3, 0.05, 1, 1, (0.8, 1.0), 0.9999, None),
    ),
    "roadmap": (
        {f"resnet50_{step}": 0.1 for step in ("enhanced_recipe", "kernel_5", "layer_norm")},
        (300, 20, 4096, 4e-3, 0.05, 1, 1, (0.8, 1.0), 0, None),
    ),
    "imagenet22k": (
        {"base": 0.1, "large": 0.1, "xlarge": 0.2},
        (90, 5, 4096, 4e-3, 0.05, 1, 1, (0.8, 1.0), 0, None),
    ),
    "finetune_1k": (
        {"base_384": 0.8, "large_384": 0.95},
        (30, 0, 512, 5e-5, 1e-8, 0.7, 1e-3, (0, 0), 0, 384),
    ),
    "finetune_22k_1k": (
        {"base_224": 0.2, "large_224": 0.3},
        (30, 0, 512, 5e-5, 1e-8, 0.8, 1e-3, (0, 0), 0, 224),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_values_are_those_of_the_papers_table(name):
    drop_paths, expected = TABLE[name]
    for run, drop_path in drop_paths.items():
        config = resolved(name, run)
        optim, augment = config.optim, config.augment
        found = (
            *(config.num_epochs, optim.warmup_epochs, config.data.global_batch, optim.lr),
            *(optim.weight_decay, optim.layer_decay, config.model.head_init_scale),
            *((augment.mixup, augment.cutmix), optim.ema_decay, config.data.image_size),
        )
        assert found == expected
        assert config.model.drop_path == drop_path
        assert (optim.b1, optim.b2, optim.eps, optim.clip_norm) == (0.9, 0.999, 1e-8, 0)
        assert (optim.min_lr, optim.label_smoothing) == (1e-6, 0.1)
        assert (augment.auto_augment, augment.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
        assert (augment.color_jitter, augment.mix_switch) == (0, 0.5)
        # The images of a device in the official runs.
        devices_images = {"large": 64}.get(run, 32) if name == "imagenet22k" else 128
        assert augment.mix_group == devices_images


def test_the_road_has_one_recipe_and_groups_of_as_many_images_as_a_device():
    runs = [name.removeprefix("roadmap_") for name in list_models("roadmap_*")]
    recipes = []
    for run in runs:
        if run.endswith("_original"):
            with pytest.raises(InputError, match=r"must be a later one: .*_enhanced_recipe has"):
                load("roadmap", run)
            continue
        config = resolved("roadmap", run)
        assert config.model.name == f"roadmap_{run}"
        assert config.model.drop_path == (0.1 if run.startswith("resnet50_") else 0.5)
        recipes.append(dataclasses.replace(config, model=None))
        if "separate" not in run:
            # As many groups however deep it is, and half a minute less for all of them.
            fewer = config.model.overrides() | {"depths": (1, 1, 1, 1)}
            model = ModelSpec(config.model.name, 10, fewer).abstract()
            norms = [m for _, m in nnx.iter_graph(model) if isinstance(m, BatchNorm)]
            assert all(norm.group == config.data.per_device_batch for norm in norms)
            assert bool(norms) == ("layer_norm" not in run)
    assert len(recipes) == 32 and all(recipe == recipes[0] for recipe in recipes)


def test_only_the_largest_model_keeps_an_average_when_it_comes_from_22k():
    for resolution in (224, 384):
        config = resolved("finetune_22k_1k", f"xlarge_{resolution}")
        assert (config.model.drop_path, config.optim.ema_decay) == (0.4, 0.9999)
        assert config.data.image_size == resolution
