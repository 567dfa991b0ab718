"""The published architectures: what to build, and how images are fed to it.

Sources: arXiv 2201.03545 and its official code for tiny to xlarge and the isotropic models, arXiv
2301.00808 for V2, timm for the rest. Backbones of DINOv3 and EUPE and the image towers of OpenCLIP
have no rows of their own: they are these models with another number of classes (0 for the
backbones), and other weights, which `pretrained.py` lists.
"""

import dataclasses

from convnext_jax.constants import (
    ADE20K_CLASSES,
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
        `segmentation.views`).
      interpolation: how images are resized.
      mean: per RGB channel, subtracted from pixels in [0, 1].
      std: per RGB channel, pixels are divided by it afterwards.
      exif: images are turned as their EXIF orientation says before anything else.
    """

    input_size: int = 224
    crop_fraction: float = 224 / 256
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    exif: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant(Preprocessing):
    """One row of the table.

    Several sets of published weights share a variant; its preprocessing is that of its main set
    fine-tuned or trained on ImageNet-1K, at 224 pixels where there is one.

    Attributes:
      architecture: `convnext`, `convnext_isotropic` or `upernet`, which class to build. The
        attributes below are arguments of that class.
      depths: number of blocks of each stage.
      dims: number of channels of each stage.
      layer_scale_init: initial value of `gamma`; None: the parameter does not exist.
      norm_eps: epsilon of every norm.
      kernel_size: side of the depthwise filters, or one for each stage.
      grn: global response normalisation in the blocks.
      stem: a key of `stems.STEMS`.
      activation: a key of `layers.ACTIVATIONS`.
      norm: a key of `layers.NORMS`.
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


VARIANTS: dict[str, Variant] = CLASSIFIERS | {
    # The paper's are over tiny to xlarge.
    f"upernet_{name}": _upernet(row)
    for name, row in CLASSIFIERS.items()
    if row.architecture == "convnext"
}
