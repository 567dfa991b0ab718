"""Published weights: what they are for, and how images are fed to them.

Those that timm lists, and the authors' own files that it does not.
"""

import dataclasses
import functools
from typing import Any

from convnext_jax.constants import COCO_CLASSES, IMAGENET_1K_CLASSES, IMAGENET_22K_CLASSES
from convnext_jax.models.variants import CLIP_MEAN, CLIP_STD, HALF, Preprocessing

_SERVER = "https://dl.fbaipublicfiles.com/convnext/"


@dataclasses.dataclass(frozen=True)
class Pretrained(Preprocessing):
    """One set of published weights.

    Attributes:
      name: the variant and timm's tag, `convnext_tiny.fb_in1k`.
      licence: SPDX identifier of the weights' licence; where there is none, timm's name for it.
      num_classes: length of the logits, or of an OpenCLIP tower's embedding; 0: there is no head.
      final_norm: whether the weights have the model's last norm; without, it keeps its initial
        value, and the embedding is not one that was trained.
      file: on the authors' server, of weights that the Hub has no copy of; None: it has one.
    """

    name: str
    licence: str
    num_classes: int = IMAGENET_1K_CLASSES
    final_norm: bool = True
    file: str | None = None

    @property
    def variant(self) -> str:
        """The model to build, a key of `VARIANTS`."""
        return self.name.partition(".")[0]

    @property
    def hub_id(self) -> str:
        """The repository on the Hugging Face Hub that has the weights, under timm's names."""
        return f"timm/{self.name}"

    @property
    def url(self) -> str | None:
        """Of the file on the authors' server."""
        return None if self.file is None else f"{_SERVER}{self.file}"


_IN12K: dict[str, Any] = {"num_classes": 11821}
_IN22K: dict[str, Any] = {"num_classes": IMAGENET_22K_CLASSES}
_FCMAE: dict[str, Any] = {"num_classes": 0, "final_norm": False}
_SQUASH_384: dict[str, Any] = {"input_size": 384, "crop_fraction": 1.0, "crop_mode": "squash"}
_SQUASH_512: dict[str, Any] = {**_SQUASH_384, "input_size": 512}

_facebook = functools.partial(Pretrained, licence="MIT")
_v2 = functools.partial(Pretrained, licence="CC-BY-NC-4.0")
_timm = functools.partial(Pretrained, licence="Apache-2.0")
_clip = functools.partial(_timm, input_size=256, crop_fraction=1.0, mean=CLIP_MEAN, std=CLIP_STD)
_dinov3 = functools.partial(Pretrained, licence="dinov3-license", num_classes=0, crop_fraction=1.0)
_eupe = functools.partial(
    Pretrained,
    licence="fair-noncommercial-research-license",
    num_classes=0,
    input_size=256,
    crop_fraction=1.0,
)

_ROWS = [
    # ConvNeXt V1, trained by its authors. timm's copies say Apache-2.0; the originals are MIT.
    _facebook("convnext_tiny.fb_in1k"),
    _facebook("convnext_tiny.fb_in22k", **_IN22K),
    _facebook("convnext_tiny.fb_in22k_ft_in1k"),
    _facebook("convnext_tiny.fb_in22k_ft_in1k_384", **_SQUASH_384),
    _facebook("convnext_small.fb_in1k"),
    _facebook("convnext_small.fb_in22k", **_IN22K),
    _facebook("convnext_small.fb_in22k_ft_in1k"),
    _facebook("convnext_small.fb_in22k_ft_in1k_384", **_SQUASH_384),
    _facebook("convnext_base.fb_in1k"),
    _facebook("convnext_base.fb_in22k", **_IN22K),
    _facebook("convnext_base.fb_in22k_ft_in1k"),
    _facebook("convnext_base.fb_in22k_ft_in1k_384", **_SQUASH_384),
    _facebook("convnext_large.fb_in1k"),
    _facebook("convnext_large.fb_in22k", **_IN22K),
    _facebook("convnext_large.fb_in22k_ft_in1k"),
    _facebook("convnext_large.fb_in22k_ft_in1k_384", **_SQUASH_384),
    _facebook("convnext_xlarge.fb_in22k", **_IN22K),
    _facebook("convnext_xlarge.fb_in22k_ft_in1k"),
    _facebook("convnext_xlarge.fb_in22k_ft_in1k_384", **_SQUASH_384),
    # ConvNeXt V2, trained by its authors. `fcmae` is the encoder after masked pretraining.
    _v2("convnextv2_atto.fcmae", **_FCMAE),
    _v2("convnextv2_atto.fcmae_ft_in1k"),
    _v2("convnextv2_femto.fcmae", **_FCMAE),
    _v2("convnextv2_femto.fcmae_ft_in1k"),
    _v2("convnextv2_pico.fcmae", **_FCMAE),
    _v2("convnextv2_pico.fcmae_ft_in1k"),
    _v2("convnextv2_nano.fcmae", **_FCMAE),
    _v2("convnextv2_nano.fcmae_ft_in1k"),
    _v2("convnextv2_nano.fcmae_ft_in22k_in1k"),
    _v2("convnextv2_nano.fcmae_ft_in22k_in1k_384", **_SQUASH_384),
    _v2("convnextv2_tiny.fcmae", **_FCMAE),
    _v2("convnextv2_tiny.fcmae_ft_in1k"),
    _v2("convnextv2_tiny.fcmae_ft_in22k_in1k"),
    _v2("convnextv2_tiny.fcmae_ft_in22k_in1k_384", **_SQUASH_384),
    _v2("convnextv2_base.fcmae", **_FCMAE),
    _v2("convnextv2_base.fcmae_ft_in1k"),
    _v2("convnextv2_base.fcmae_ft_in22k_in1k"),
    _v2("convnextv2_base.fcmae_ft_in22k_in1k_384", **_SQUASH_384),
    _v2("convnextv2_large.fcmae", **_FCMAE),
    _v2("convnextv2_large.fcmae_ft_in1k"),
    _v2("convnextv2_large.fcmae_ft_in22k_in1k"),
    _v2("convnextv2_large.fcmae_ft_in22k_in1k_384", **_SQUASH_384),
    _v2("convnextv2_huge.fcmae", **_FCMAE),
    _v2("convnextv2_huge.fcmae_ft_in1k"),
    _v2("convnextv2_huge.fcmae_ft_in22k_in1k_384", **_SQUASH_384),
    _v2("convnextv2_huge.fcmae_ft_in22k_in1k_512", **_SQUASH_512),
    # Trained with timm.
    _timm("convnext_zepto_rms.ra4_e3600_r224_in1k", mean=HALF, std=HALF),
    _timm("convnext_zepto_rms_ols.ra4_e3600_r224_in1k", crop_fraction=0.9, mean=HALF, std=HALF),
    _timm("convnext_atto.d2_in1k"),
    _timm("convnext_atto_ols.a2_in1k"),
    _timm("convnext_femto.d1_in1k"),
    _timm("convnext_femto_ols.d1_in1k"),
    _timm("convnext_pico.d1_in1k"),
    _timm("convnext_pico_ols.d1_in1k", crop_fraction=0.95),
    _timm("convnext_nano.d1h_in1k", crop_fraction=0.95),
    _timm("convnext_nano.in12k", **_IN12K, crop_fraction=0.95),
    _timm("convnext_nano.in12k_ft_in1k", crop_fraction=0.95),
    _timm("convnext_nano.r384_ad_in12k", **_IN12K, input_size=384, crop_fraction=1.0),
    _timm("convnext_nano.r384_in12k", **_IN12K, input_size=384, crop_fraction=1.0),
    _timm("convnext_nano.r384_in12k_ft_in1k", input_size=384, crop_fraction=1.0),
    _timm("convnext_nano_ols.d1h_in1k", crop_fraction=0.95),
    _timm("convnext_tiny.in12k", **_IN12K, crop_fraction=0.95),
    _timm("convnext_tiny.in12k_ft_in1k", crop_fraction=0.95),
    _timm("convnext_tiny.in12k_ft_in1k_384", **_SQUASH_384),
    _timm("convnext_tiny_hnf.a2h_in1k", crop_fraction=0.95),
    _timm("convnext_small.in12k", **_IN12K, crop_fraction=0.95),
    _timm("convnext_small.in12k_ft_in1k", crop_fraction=0.95),
    _timm("convnext_small.in12k_ft_in1k_384", **_SQUASH_384),
    _timm("test_convnext.r160_in1k", input_size=160, crop_fraction=0.95, mean=HALF, std=HALF),
    _timm("test_convnext2.r160_in1k", input_size=160, crop_fraction=0.95, mean=HALF, std=HALF),
    _timm("test_convnext3.r160_in1k", input_size=160, crop_fraction=0.95, mean=HALF, std=HALF),
    # Image towers of OpenCLIP, with their projection as the head, and classifiers made from them.
    _clip("convnext_base.clip_laion2b", num_classes=640),
    _clip("convnext_base.clip_laion2b_augreg", num_classes=640),
    _clip("convnext_base.clip_laion2b_augreg_ft_in1k"),
    _clip("convnext_base.clip_laion2b_augreg_ft_in12k", **_IN12K),
    _clip("convnext_base.clip_laion2b_augreg_ft_in12k_in1k"),
    _clip("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", **_SQUASH_384),
    _clip("convnext_base.clip_laiona", num_classes=640),
    _clip("convnext_base.clip_laiona_320", num_classes=640, input_size=320),
    _clip("convnext_base.clip_laiona_augreg_320", num_classes=640, input_size=320),
    _clip("convnext_base.clip_laiona_augreg_ft_in1k_384", input_size=384),
    _clip("convnext_large_mlp.clip_laion2b_augreg", num_classes=768),
    _clip("convnext_large_mlp.clip_laion2b_augreg_ft_in1k"),
    _clip("convnext_large_mlp.clip_laion2b_augreg_ft_in1k_384", **_SQUASH_384),
    _clip("convnext_large_mlp.clip_laion2b_augreg_ft_in12k_384", **_IN12K, **_SQUASH_384),
    _clip("convnext_large_mlp.clip_laion2b_ft_320", num_classes=768, input_size=320),
    _clip("convnext_large_mlp.clip_laion2b_ft_soup_320", num_classes=768, input_size=320),
    _clip("convnext_large_mlp.clip_laion2b_soup_ft_in12k_320", **_IN12K, input_size=320),
    _clip("convnext_large_mlp.clip_laion2b_soup_ft_in12k_384", **_IN12K, **_SQUASH_384),
    _clip("convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320", input_size=320),
    _clip("convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384", **_SQUASH_384),
    _clip("convnext_xxlarge.clip_laion2b_rewind", num_classes=1024),
    _clip("convnext_xxlarge.clip_laion2b_soup", num_classes=1024),
    _clip("convnext_xxlarge.clip_laion2b_soup_ft_in1k"),
    _clip("convnext_xxlarge.clip_laion2b_soup_ft_in12k", **_IN12K),
    # Backbones without a head.
    _dinov3("convnext_tiny.dinov3_lvd1689m"),
    _dinov3("convnext_small.dinov3_lvd1689m"),
    _dinov3("convnext_base.dinov3_lvd1689m"),
    _dinov3("convnext_large.dinov3_lvd1689m"),
    _eupe("convnext_tiny.eupe_lvd1689m"),
    _eupe("convnext_small.eupe_lvd1689m"),
    _eupe("convnext_base.eupe_lvd1689m"),
]

PRETRAINED: dict[str, Pretrained] = {row.name: row for row in _ROWS}


def _coco(detector: str, size: str, data: str) -> Pretrained:
    """A detector, and the ImageNet that its backbone saw before."""
    variant = f"{detector}_convnext_{size}"
    return _facebook(
        f"{variant}.fb_in{data}_ft_coco",
        num_classes=COCO_CLASSES,
        input_size=800,
        longest_side=1333,
        crop_fraction=1.0,
        crop_mode="fit",
        interpolation="bilinear",
        file=f"coco/{variant}_{data}_3x.pth",
    )


# Of the authors' files those that the Hub has no copy of, under names as timm would give them.
NOT_ON_HUB: dict[str, Pretrained] = {
    row.name: row
    for row in (
        _facebook("convnext_base.fb_in1k_384", **_SQUASH_384, file="convnext_base_1k_384.pth"),
        _facebook("convnext_large.fb_in1k_384", **_SQUASH_384, file="convnext_large_1k_384.pth"),
        *(
            _facebook(
                f"convnext_isotropic_{size}.fb_in1k", file=f"convnext_iso_{size}_1k_224_ema.pth"
            )
            for size in ("small", "base", "large")
        ),
        _coco("mask_rcnn", "tiny", "1k"),
        *(_coco("cascade_mask_rcnn", size, "1k") for size in ("tiny", "small", "base")),
        *(_coco("cascade_mask_rcnn", size, "22k") for size in ("base", "large", "xlarge")),
    )
}
