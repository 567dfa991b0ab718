"""The published models: what to build, and how their weights expect to be fed.

Sources: arXiv 2201.03545 and its official code for tiny to xlarge and the isotropic models; timm
for atto to nano. Several sets of published weights share a variant; the input values here are those
of its main ImageNet-1K set at 224 pixels.
"""

import dataclasses

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      architecture: `convnext` or `convnext_isotropic`, which class to build.
      depths: number of blocks of each stage.
      dims: number of channels of each stage.
      layer_scale_init: initial value of `gamma`; None: the parameter does not exist.
      norm_eps: epsilon of every LayerNorm.
      input_size: side of the square evaluation image, pixels.
      crop_fraction: `input_size` divided by the shorter side of the resized image it is cut from.
      interpolation: how images are resized.
      mean: per RGB channel, subtracted from pixels in [0, 1].
      std: per RGB channel, pixels are divided by it afterwards.
      weights_licence: SPDX identifier of the licence the published weights come with.
    """

    architecture: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    layer_scale_init: float | None = 1e-6
    norm_eps: float = 1e-6
    input_size: int = 224
    crop_fraction: float = 224 / 256
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    weights_licence: str = "MIT"


def _staged(depths: tuple[int, ...], first_dim: int, **others) -> Variant:
    dims = tuple(first_dim * 2**stage for stage in range(4))
    return Variant("convnext", depths, dims, **others)


def _isotropic(depth: int, dim: int, layer_scale_init: float | None = None) -> Variant:
    return Variant("convnext_isotropic", (depth,), (dim,), layer_scale_init)


VARIANTS: dict[str, Variant] = {
    "convnext_atto": _staged((2, 2, 6, 2), 40, weights_licence="Apache-2.0"),
    "convnext_femto": _staged((2, 2, 6, 2), 48, weights_licence="Apache-2.0"),
    "convnext_pico": _staged((2, 2, 6, 2), 64, weights_licence="Apache-2.0"),
    "convnext_nano": _staged((2, 2, 8, 2), 80, weights_licence="Apache-2.0", crop_fraction=0.95),
    "convnext_tiny": _staged((3, 3, 9, 3), 96),
    "convnext_small": _staged((3, 3, 27, 3), 96),
    "convnext_base": _staged((3, 3, 27, 3), 128),
    "convnext_large": _staged((3, 3, 27, 3), 192),
    "convnext_xlarge": _staged((3, 3, 27, 3), 256),
    "convnext_isotropic_small": _isotropic(18, 384),
    "convnext_isotropic_base": _isotropic(18, 768),
    "convnext_isotropic_large": _isotropic(36, 1024, layer_scale_init=1e-6),
}
