"""The published architectures: what to build, and how images are fed to it.

Sources: arXiv 2201.03545 and its official code for tiny to xlarge and the isotropic models, arXiv
2301.00808 for V2, timm for the rest. Backbones of DINOv3 and EUPE and the image towers of OpenCLIP
have no rows of their own: they are these models with another number of classes (0 for the
backbones), and other weights, which `pretrained.py` lists.
"""

import dataclasses
from typing import Any

from convnext_jax.constants import (
    ADE20K_CLASSES,
    COCO_CLASSES,
    IMAGENET_1K_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
)

# Mean and standard deviation that CLIP was trained with, for pixels scaled to [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Pixels scaled to [-1, 1].
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the input of a model in evaluation.

    Attributes:
      input_size: side of the square image, pixels.
      crop_fraction: `input_size` divided by the side of the resized image it is cut from.
      crop_mode: `center`: the shorter side is resized to `input_size / crop_fraction` pixels and
        the centre cut out; `squash`: both sides are, without keeping the aspect ratio; `window`:
        the shorter side is, and windows over all of the image are cut out (see
        `segmentation.views`); `fit`: the shorter side is resized to `input_size`, or less so that
        the longer one has no more than `longest_side`, and nothing is cut off.
      interpolation: how images are resized.
      mean: per RGB channel, subtracted from pixels in [0, 1].
      std: per RGB channel, pixels are divided by it afterwards.
      exif: images are turned as their EXIF orientation says before anything else.
      longest_side: see `fit`; None for the others.
    """

    input_size: int = 224
    crop_fraction: float = 224 / 256
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    exif: bool = False
    longest_side: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(Preprocessing):
    """One row of the table.

    Several sets of published weights share a variant; its preprocessing is that of its main set
    fine-tuned or trained on ImageNet-1K, at 224 pixels where there is one.

    Attributes:
      architecture: `convnext`, `convnext_isotropic`, `roadmap`, `upernet`, `mask_rcnn` or
        `cascade_mask_rcnn`, which class to build. The attributes below are arguments of that class,
        where it has them.
      depths: number of blocks of each stage.
      dims: number of channels of each stage.
      layer_scale_init: initial value of `gamma`; None: the parameter does not exist.
      norm_eps: epsilon of every norm.
      kernel_size: side of the depthwise filters, or one for each stage.
      grn: global response normalisation in the blocks.
      stem: a key of `stems.STEMS`; of the roadmap's of `roadmap.STEMS`.
      activation: a key of `layers.ACTIVATIONS`; or `relu`.
      norm: a key of `layers.NORMS`; or of `roadmap.NORMS`.
      block: of the roadmap's models, as the next three; one of `roadmap.BLOCKS`.
      depthwise: the k x k convolutions of bottlenecks are depthwise.
      fewer_activations: one a block instead of three.
      fewer_norms: likewise.
      head_norm_first: the final norm comes before the pooling.
      head_hidden_size: width of a hidden layer in the head; None: there is none.
      num_classes: of the dataset that the paper trains it on.
      task: what models of this kind are trained for; a key of `wings.WINGS`.
    """

    architecture: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    layer_scale_init: float | None = 1e-6
    norm_eps: float = 1e-6
    kernel_size: int | tuple[int, ...] = 7
    grn: bool = False
    stem: str = "patch"
    activation: str = "gelu"
    norm: str = "layer_norm"
    block: str = "bottleneck"
    depthwise: bool = False
    fewer_activations: bool = False
    fewer_norms: bool = False
    head_norm_first: bool = False
    head_hidden_size: int | None = None
    num_classes: int = IMAGENET_1K_CLASSES
    task: str = "classification"


def _v1(depths: tuple[int, ...], first_dim: int, **others) -> Variant:
    dims = tuple(first_dim * 2**stage for stage in range(4))
    return Variant(architecture="convnext", depths=depths, dims=dims, **others)


def _v2(depths: tuple[int, ...], first_dim: int) -> Variant:
    return _v1(depths, first_dim, grn=True, layer_scale_init=None)


def _isotropic(depth: int, dim: int, layer_scale_init: float | None = None) -> Variant:
    return Variant(
        architecture="convnext_isotropic",
        depths=(depth,),
        dims=(dim,),
        layer_scale_init=layer_scale_init,
    )


def _smallest(depths: tuple[int, ...], dims: tuple[int, ...], **others) -> Variant:
    return Variant(
        architecture="convnext",
        depths=depths,
        dims=dims,
        norm_eps=1e-5,
        input_size=160,
        crop_fraction=0.95,
        mean=HALF,
        std=HALF,
        **others,
    )


CLASSIFIERS: dict[str, Variant] = {
    # The paper's.
    "convnext_tiny": _v1((3, 3, 9, 3), 96),
    "convnext_small": _v1((3, 3, 27, 3), 96),
    "convnext_base": _v1((3, 3, 27, 3), 128),
    "convnext_large": _v1((3, 3, 27, 3), 192),
    "convnext_xlarge": _v1((3, 3, 27, 3), 256),
    "convnext_isotropic_small": _isotropic(18, 384),
    "convnext_isotropic_base": _isotropic(18, 768),
    "convnext_isotropic_large": _isotropic(36, 1024, layer_scale_init=1e-6),
    # V2.
    "convnextv2_atto": _v2((2, 2, 6, 2), 40),
    "convnextv2_femto": _v2((2, 2, 6, 2), 48),
    "convnextv2_pico": _v2((2, 2, 6, 2), 64),
    "convnextv2_nano": _v2((2, 2, 8, 2), 80),
    "convnextv2_tiny": _v2((3, 3, 9, 3), 96),
    "convnextv2_base": _v2((3, 3, 27, 3), 128),
    "convnextv2_large": _v2((3, 3, 27, 3), 192),
    "convnextv2_huge": _v2((3, 3, 27, 3), 352),
    # timm's. Some of these compute their perceptrons with 1x1 convolutions there: same products.
    "convnext_atto": _v1((2, 2, 6, 2), 40),
    "convnext_femto": _v1((2, 2, 6, 2), 48),
    "convnext_pico": _v1((2, 2, 6, 2), 64),
    "convnext_nano": _v1((2, 2, 8, 2), 80, crop_fraction=0.95),
    "convnext_atto_ols": _v1((2, 2, 6, 2), 40, stem="overlap_tiered"),
    "convnext_femto_ols": _v1((2, 2, 6, 2), 48, stem="overlap_tiered"),
    "convnext_pico_ols": _v1((2, 2, 6, 2), 64, stem="overlap_tiered", crop_fraction=0.95),
    "convnext_nano_ols": _v1((2, 2, 8, 2), 80, stem="overlap", crop_fraction=0.95),
    "convnext_tiny_hnf": _v1((3, 3, 9, 3), 96, head_norm_first=True, crop_fraction=0.95),
    "convnext_zepto_rms": _v1((2, 2, 4, 2), 32, norm="simple_norm", mean=HALF, std=HALF),
    "convnext_zepto_rms_ols": _v1(
        (2, 2, 4, 2),
        32,
        norm="simple_norm",
        stem="overlap_act",
        crop_fraction=0.9,
        mean=HALF,
        std=HALF,
    ),
    "convnext_large_mlp": _v1(
        (3, 3, 27, 3),
        192,
        head_hidden_size=1536,
        input_size=256,
        crop_fraction=1.0,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "convnext_xxlarge": _v1(
        (3, 4, 30, 3),
        384,
        norm_eps=1e-5,
        input_size=256,
        crop_fraction=1.0,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "test_convnext": _smallest((1, 2, 4, 2), (24, 32, 48, 64), activation="gelu_tanh"),
    "test_convnext2": _smallest((1, 1, 1, 1), (32, 64, 96, 128), activation="gelu_tanh"),
    "test_convnext3": _smallest(
        (1, 1, 1, 1), (32, 64, 96, 128), activation="silu", kernel_size=(7, 5, 5, 3)
    ),
}


def _upernet(backbone: Variant) -> Variant:
    # The paper's segmentation starts layer scale at 1; trained weights bring their own.
    scaled = backbone.layer_scale_init is not None
    return dataclasses.replace(
        backbone,
        architecture="upernet",
        task="segmentation",
        num_classes=ADE20K_CLASSES,
        layer_scale_init=1.0 if scaled else None,
        input_size=512,
        crop_fraction=1.0,
        crop_mode="window",
        interpolation="bilinear",
    )


def _detector(architecture: str, backbone: Variant) -> Variant:
    # The sides that images are resized into, and layer scale, are those of the paper's detection.
    scaled = backbone.layer_scale_init is not None
    return dataclasses.replace(
        backbone,
        architecture=architecture,
        task="detection",
        num_classes=COCO_CLASSES,
        layer_scale_init=1.0 if scaled else None,
        input_size=800,
        longest_side=1333,
        crop_fraction=1.0,
        crop_mode="fit",
        interpolation="bilinear",
    )


def _widths(first: int) -> tuple[int, ...]:
    return tuple(first * 2**stage for stage in range(4))


# The steps from ResNet to ConvNeXt (section 2; tables 10 and 11), each with what it changes in the
# one before, for ResNet-50 and ResNet-200. Bottlenecks give four times the width of their 3x3
# convolutions.
_Change = dict[str, Any]


def _both(**change: Any) -> tuple[_Change, _Change]:
    return change, change


ROADMAP_STEPS: dict[str, tuple[_Change, _Change]] = {
    "original": (
        {"depths": (3, 4, 6, 3), "dims": _widths(256), "interpolation": "bilinear"},
        {"depths": (3, 24, 36, 3), "dims": _widths(256), "interpolation": "bilinear"},
    ),
    "enhanced_recipe": _both(interpolation="bicubic"),  # the same network
    "stage_ratio": ({"depths": (3, 3, 9, 3)}, {"depths": (3, 3, 27, 3), "dims": _widths(4 * 84)}),
    "patchify_stem": _both(stem="patch"),
    "depthwise_conv": _both(depthwise=True),
    "increased_width": ({"dims": _widths(4 * 96)}, {"dims": _widths(4 * 128)}),
    "inverted_bottleneck": (
        {"block": "inverted_bottleneck", "dims": _widths(96)},
        {"block": "inverted_bottleneck", "dims": _widths(128)},
    ),
    "depthwise_first": _both(block="depthwise_first"),
    # Of these only the second is kept.
    "kernel_5": _both(kernel_size=5),
    "kernel_7": _both(kernel_size=7),
    "kernel_9": _both(kernel_size=9),
    "kernel_11": _both(kernel_size=11),
    "gelu": _both(kernel_size=7, activation="gelu"),
    "fewer_activations": _both(fewer_activations=True),
    "fewer_norms": _both(fewer_norms=True),
    "layer_norm": _both(norm="layer_norm", norm_eps=1e-6),
}


def _roadmap(regime: int) -> dict[str, Variant]:
    """The networks of ResNet-50 (0) or ResNet-200 (1), by the name of the step."""
    sofar: _Change = {"activation": "relu", "norm": "batch_norm", "norm_eps": 1e-5}
    sofar |= {"stem": "resnet", "kernel_size": 3, "layer_scale_init": None}
    rows = {}
    for step, changes in ROADMAP_STEPS.items():
        sofar |= changes[regime]
        rows[step] = Variant(architecture="roadmap", **sofar)
    last = ("convnext_tiny", "convnext_base")[regime]
    rows["separate_downsampling"] = dataclasses.replace(CLASSIFIERS[last], layer_scale_init=None)
    return rows


ROADMAP: dict[str, Variant] = {
    f"roadmap_{name}_{step}": row
    for regime, name in enumerate(("resnet50", "resnet200"))
    for step, row in _roadmap(regime).items()
}

DETECTORS = ("mask_rcnn", "cascade_mask_rcnn")
_BACKBONES = {n: row for n, row in CLASSIFIERS.items() if row.architecture == "convnext"}

# The paper's of segmentation and detection are over tiny to xlarge.
VARIANTS: dict[str, Variant] = (
    CLASSIFIERS
    | ROADMAP
    | {f"upernet_{name}": _upernet(row) for name, row in _BACKBONES.items()}
    | {
        f"{detector}_{name}": _detector(detector, row)
        for detector in DETECTORS
        for name, row in _BACKBONES.items()
    }
)
