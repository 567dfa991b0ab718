"""The published numbers that `python -m convnext_jax.reproduce` measures again.

Of "A ConvNet for the 2020s" (arXiv 2201.03545, "the paper"): tables 1, 2, 3, 4, 7 and 8; of
ConvNeXt V2 (arXiv 2301.00808) the main results. Beside them stand what the authors' README and timm
say of the same weights, and what others say of weights that they trained themselves.

How far a result may be from the published one (`TOLERANCES`) has these reasons. Most published
numbers are rounded to 0.1, so that 0.05 of any difference says nothing. Another reader of images
and another order of sums move a few predictions: timm's runs of the authors' weights are up to 0.06
points from the paper on the 50,000 images of ImageNet's validation, up to 0.1 on the other sets
(but for ImageNet-A and -R at 384 pixels, whose rows say so).
Hence 0.1 on sets of 45,000 images and more, and 0.2 on smaller ones, where one image counts for
more, as on ADE20K and COCO. How images of ImageNet-C and C-bar were fed is not published: 0.5.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from convnext_jax.models.pretrained import NOT_ON_HUB


@dataclasses.dataclass(frozen=True)
class Published:
    """A number as somebody published it.

    Attributes:
      value: percent; of box and mask AP, points; of mCE, percent of AlexNet's errors.
      source: who says so: `paper, table 1`, `authors' README`, `timm`.
    """

    value: float
    source: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One number to measure.

    Attributes:
      model: as people read it, `ConvNeXt-T`.
      data: what it was trained on, in this order.
      size: of the input in pixels: its side; of ADE20K that of a window, of COCO the longest that
        the longer side may be.
      test_set: a key of `METRICS`.
      metric: one of those that `METRICS` has for the test set.
      hub: a name that `load_pretrained` takes; None: these weights have none.
      file: the authors' name of the file with the weights that gave the number; None: not known.
      published: the first is the one that counts.
      tolerance: how far from the first a measured value may be, in its units; at least 0.
      note: a sentence that a reader of the row must know; may be empty.
    """

    model: str
    data: str
    size: int
    test_set: str
    metric: str
    hub: str | None
    file: str | None
    published: tuple[Published, ...]
    tolerance: float
    note: str = ""

    @property
    def name(self) -> str:
        """What the row is called, in its table unlike any other: `convnext_tiny.fb_in1k/imagenet`.

        Begins with timm's name of the weights, else with the authors' file. (Repositories in which
        others published weights of their own do not name a row.)
        """
        if self.hub is not None and not self.hub.startswith("hf-hub:"):
            weights = self.hub
        elif self.file is not None:
            weights = self.file.rpartition(".")[0]
        else:
            weights = f"{self.model} {self.data} {self.size}".lower().replace(" ", "_")
        several = len(METRICS[self.test_set]) > 1
        return "/".join([weights, self.test_set, *([self.metric] if several else [])])

    @property
    def path(self) -> str | None:
        """Where the authors' server has the file, below `SERVER`; None: there is no `file`."""
        if self.file is None:
            return None
        folder = f"{self.test_set}/" if self.test_set in ("ade20k", "coco") else ""
        if self.file.startswith("convnextv2_"):
            folder = "convnextv2/im22k/" if "_22k_" in self.file else "convnextv2/im1k/"
        return folder + self.file


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper, or what belongs together of several.

    Attributes:
      name: a key of `TABLES`.
      title: with the numbers that its tables have in the paper.
      rows: in the order in which they are shown.
    """

    name: str
    title: str
    rows: tuple[Row, ...]


SERVER = "https://dl.fbaipublicfiles.com/convnext/"

# The metrics of each test set. Of a set of images with labels it is top-1, but for the corrupted
# ones: C has errors relative to AlexNet's (mCE), C-bar the plain mean of errors.
METRICS: dict[str, tuple[str, ...]] = {
    "imagenet": ("top1",),
    "imagenet_a": ("top1",),
    "imagenet_r": ("top1",),
    "imagenet_sketch": ("top1",),
    "imagenet_v2": ("top1",),
    "imagenet_real": ("top1",),
    "imagenet_c": ("mce",),
    "imagenet_c_bar": ("error",),
    "ade20k": ("miou", "miou_multi_scale"),
    "coco": ("box_ap", "mask_ap"),
}
# In the units of the metrics; the reasons are above.
TOLERANCES: dict[str, float] = {
    "imagenet": 0.1,
    "imagenet_real": 0.1,
    "imagenet_sketch": 0.1,
    "imagenet_a": 0.2,
    "imagenet_r": 0.2,
    "imagenet_v2": 0.2,
    "imagenet_c": 0.5,
    "imagenet_c_bar": 0.5,
    "ade20k": 0.2,
    "coco": 0.2,
}

_FAMILIES = {
    "convnext": "ConvNeXt",
    "convnextv2": "ConvNeXt V2",
    "convnext_isotropic": "Isotropic ConvNeXt",
}
# Of timm's tags: what the weights were trained on, in what size, and how the authors' files end.
# "_ema" is the moving average of the weights, which gave the paper's number.
_TAGS = {
    "fb_in1k": ("ImageNet-1K", 224, "1k_224_ema.pth"),
    "fb_in1k_384": ("ImageNet-1K", 384, "1k_384.pth"),
    "fb_in22k_ft_in1k": ("ImageNet-22K, then 1K", 224, "22k_1k_224.pth"),
    "fb_in22k_ft_in1k_384": ("ImageNet-22K, then 1K", 384, "22k_1k_384.pth"),
    "fcmae_ft_in1k": ("FCMAE, then ImageNet-1K", 224, "1k_224_ema.pt"),
    "fcmae_ft_in22k_in1k": ("FCMAE, ImageNet-22K, then 1K", 224, "22k_224_ema.pt"),
    "fcmae_ft_in22k_in1k_384": ("FCMAE, ImageNet-22K, then 1K", 384, "22k_384_ema.pt"),
    "fcmae_ft_in22k_in1k_512": ("FCMAE, ImageNet-22K, then 1K", 512, "22k_512_ema.pt"),
}
# The one size whose fine-tuning from ImageNet-22K has such an average.
_EMA_FROM_22K = "xlarge"

_README = "authors' README"
_TABLE_1, _TABLE_2, _TABLE_8 = (f"paper, table {number}" for number in (1, 2, 8))
_V2 = "paper of V2"
# Weights of others' own training. The paper saw whole images at six sizes, mmsegmentation windows.
_MMSEG = ("mmsegmentation, retrained", "mmsegmentation, retrained, in windows")
_MMDET = "mmdetection, retrained"

# Top-1 on ImageNet's validation. Table 1 of the paper has no T and S that saw ImageNet-22K.
_TOP1 = {
    "fb_in1k": {"tiny": 82.1, "small": 83.1, "base": 83.8, "large": 84.3},
    "fb_in1k_384": {"base": 85.1, "large": 85.5},
    "fb_in22k_ft_in1k": {"base": 85.8, "large": 86.6, "xlarge": 87.0},
    "fb_in22k_ft_in1k_384": {"base": 86.8, "large": 87.5, "xlarge": 87.8},
}
_TOP1_README = {
    "fb_in22k_ft_in1k": {"tiny": 82.9, "small": 84.6, "base": 85.82},
    "fb_in22k_ft_in1k_384": {"tiny": 84.1, "small": 85.8},
}
# Of each isotropic model, the paper's and, where it is another, the README's.
_TOP1_ISOTROPIC = {"small": (79.7, 78.7), "base": (82.0, None), "large": (82.6, None)}
_TOP1_V2 = {
    "atto": (76.7, None, None, None),
    "femto": (78.5, None, None, None),
    "pico": (80.3, None, None, None),
    "nano": (81.9, 82.1, 83.4, None),
    "tiny": (83.0, 83.9, 85.1, None),
    "base": (84.9, 86.8, 87.7, None),
    "large": (85.8, 87.3, 88.2, None),
    "huge": (86.3, None, 88.7, 88.9),
}
_TAGS_V2 = [tag for tag in _TAGS if tag.startswith("fcmae")]

# Table 8 of the paper: all ConvNeXts that are in it.
_ROBUST_SETS = (
    "imagenet",
    "imagenet_c",
    "imagenet_c_bar",
    "imagenet_a",
    "imagenet_r",
    "imagenet_sketch",
)
_ROBUST = {
    "convnext_tiny.fb_in1k": (82.1, 53.2, 40.0, 24.2, 47.2, 33.8),
    "convnext_base.fb_in1k": (83.8, 46.8, 34.4, 36.7, 51.3, 38.2),
    "convnext_base.fb_in22k_ft_in1k_384": (86.8, 43.1, 30.7, 62.3, 64.9, 51.6),
    "convnext_large.fb_in22k_ft_in1k_384": (87.5, 40.2, 29.9, 65.5, 66.7, 52.8),
    "convnext_xlarge.fb_in22k_ft_in1k_384": (87.8, 38.8, 27.1, 69.3, 68.2, 55.0),
}
# timm's result files of October 2025, top-1. V2 is the set that is called matched frequency.
_TIMM_SETS = (
    "imagenet",
    "imagenet_a",
    "imagenet_r",
    "imagenet_real",
    "imagenet_v2",
    "imagenet_sketch",
)
_TIMM = {
    "convnext_tiny.fb_in1k": (82.066, 24.107, 47.133, 87.309, 70.93, 33.825),
    "convnext_small.fb_in1k": (83.144, 31.373, 49.540, 88.052, 72.30, 37.063),
    "convnext_base.fb_in1k": (83.838, 36.693, 51.250, 88.377, 73.78, 38.236),
    "convnext_large.fb_in1k": (84.304, 41.213, 53.413, 88.594, 74.19, 40.105),
    "convnext_tiny.fb_in22k_ft_in1k": (82.900, 36.640, 50.983, 88.018, 72.58, 38.458),
    "convnext_tiny.fb_in22k_ft_in1k_384": (84.098, 42.013, 52.073, 88.859, 73.36, 39.798),
    "convnext_small.fb_in22k_ft_in1k": (84.582, 45.147, 57.303, 89.150, 74.80, 43.611),
    "convnext_small.fb_in22k_ft_in1k_384": (85.752, 53.160, 59.927, 89.927, 76.17, 46.873),
    "convnext_base.fb_in22k_ft_in1k": (85.814, 54.773, 61.783, 89.675, 76.16, 48.804),
    "convnext_base.fb_in22k_ft_in1k_384": (86.826, 63.307, 64.743, 90.343, 77.79, 51.551),
    "convnext_large.fb_in22k_ft_in1k": (86.612, 60.480, 63.843, 89.831, 77.56, 49.924),
    "convnext_large.fb_in22k_ft_in1k_384": (87.456, 67.387, 66.510, 90.307, 78.70, 52.732),
    "convnext_xlarge.fb_in22k_ft_in1k": (86.970, 63.787, 65.073, 89.978, 77.89, 52.567),
    "convnext_xlarge.fb_in22k_ft_in1k_384": (87.764, 71.187, 67.780, 90.540, 78.81, 55.006),
    "convnextv2_atto.fcmae_ft_in1k": (76.644, 6.760, 37.097, 83.189, 64.26, 26.444),
    "convnextv2_tiny.fcmae_ft_in1k": (82.948, 29.467, 47.927, 87.600, 72.03, 36.077),
    "convnextv2_base.fcmae_ft_in1k": (84.890, 45.720, 54.537, 88.866, 74.99, 41.266),
    "convnextv2_large.fcmae_ft_in1k": (85.762, 54.680, 59.460, 89.547, 76.09, 45.933),
    "convnextv2_huge.fcmae_ft_in1k": (86.260, 61.853, 63.083, 89.876, 77.25, 48.582),
}

# ADE20K, of a size and the data before it: the window; the paper's mean IoU with windows (table 7)
# and of whole images in six sizes (table 4); mmsegmentation's of weights that it trained itself;
# and the name of the latter on the hub.
_ADE20K = {
    ("tiny", "1k"): (512, (46.0, 46.7), (46.11, 46.62), "tiny"),
    ("small", "1k"): (512, (48.7, 49.6), (48.56, 49.02), "small"),
    ("base", "1k"): (512, (49.1, 49.9), (48.71, 49.54), "base"),
    ("base", "22k"): (640, (52.6, 53.1), (52.13, 52.66), None),
    ("large", "22k"): (640, (53.2, 53.7), (53.16, 53.38), "large"),
    ("xlarge", "22k"): (640, (53.6, 54.0), (53.58, 54.11), "xlarge"),
}
# COCO, of a detector, a size and the data before it: the paper's AP of boxes and masks (table 3),
# and mmdetection's of weights that it trained itself.
_COCO = {
    ("mask_rcnn", "tiny", "1k"): ((46.2, 41.7), (46.2, 41.7)),
    ("cascade_mask_rcnn", "tiny", "1k"): ((50.4, 43.7), (50.3, 43.6)),
    ("cascade_mask_rcnn", "small", "1k"): ((51.9, 45.0), (51.8, 44.8)),
    ("cascade_mask_rcnn", "base", "1k"): ((52.7, 45.6), None),
    ("cascade_mask_rcnn", "base", "22k"): ((54.0, 46.9), None),
    ("cascade_mask_rcnn", "large", "22k"): ((54.8, 47.6), None),
    ("cascade_mask_rcnn", "xlarge", "22k"): ((55.2, 47.7), None),
}
_DETECTORS = {"mask_rcnn": "Mask R-CNN", "cascade_mask_rcnn": "Cascade Mask R-CNN"}
_COCO_LONGER_SIDE = 1333  # pixels

_NOT_ON_HUB = "timm has no copy of these weights; only the authors publish them."
_ISOTROPIC_S = "Paper and README differ by a whole point; the weights decide which is right."
_AT_384 = (
    "At 384 pixels timm's runs of the authors' weights are 1 to 2 points above the paper on"
    " ImageNet-A and up to 0.4 below it on ImageNet-R; why is not known."
)
_CORRUPTED = "The paper does not say how it feeds these images, which are published at 224 pixels."
_MMSEG_ON_HUB = "The hub has the weights that mmsegmentation retrained, not the authors'."


def _letter(size: str) -> str:
    """What the papers call a size: `XL` of `xlarge`."""
    return "XL" if size == "xlarge" else size[0].upper()


def _published(*said: tuple[float | None, str]) -> tuple[Published, ...]:
    """Those that there are."""
    return tuple(Published(value, source) for value, source in said if value is not None)


def _of(
    table: Mapping[str, tuple[float, ...]], sets: tuple[str, ...], hub: str, test_set: str
) -> float | None:
    """What a table of weights over test sets has of one; None: nothing."""
    return table[hub][sets.index(test_set)] if hub in table and test_set in sets else None


def _classifier(name: str, test_set: str, *said: tuple[float | None, str], note: str = "") -> Row:
    """A row of weights under timm's name or what it would be; timm's number comes after `said`."""
    variant, tag = name.split(".")
    family, _, size = variant.rpartition("_")
    data, pixels, ending = _TAGS[tag]
    if size == _EMA_FROM_22K:
        ending = ending.replace(".pth", "_ema.pth")
    not_on_hub = name in NOT_ON_HUB
    return Row(
        model=f"{_FAMILIES[family]}-{_letter(size)}",
        data=data,
        size=pixels,
        test_set=test_set,
        metric=METRICS[test_set][0],
        hub=None if not_on_hub else name,
        file=f"{variant.replace('isotropic', 'iso')}_{ending}",
        published=_published(*said, (_of(_TIMM, _TIMM_SETS, name, test_set), "timm")),
        tolerance=TOLERANCES[test_set],
        note=" ".join(filter(None, (_NOT_ON_HUB if not_on_hub else "", note))),
    )


def _imagenet1k() -> Iterator[Row]:
    for tag in ("fb_in1k", "fb_in1k_384"):
        for size, top1 in _TOP1[tag].items():
            yield _classifier(f"convnext_{size}.{tag}", "imagenet", (top1, _TABLE_1))


def _imagenet22k() -> Iterator[Row]:
    for tag, by_readme in _TOP1_README.items():
        for size in ("tiny", "small", "base", "large", "xlarge"):
            said = ((_TOP1[tag].get(size), _TABLE_1), (by_readme.get(size), _README))
            yield _classifier(f"convnext_{size}.{tag}", "imagenet", *said)


def _isotropic() -> Iterator[Row]:
    for size, (top1, by_readme) in _TOP1_ISOTROPIC.items():
        said = ((top1, _TABLE_2), (by_readme, _README))
        note = "" if by_readme is None else _ISOTROPIC_S
        yield _classifier(f"convnext_isotropic_{size}.fb_in1k", "imagenet", *said, note=note)


def _v2() -> Iterator[Row]:
    for column, tag in enumerate(_TAGS_V2):
        for size, top1 in _TOP1_V2.items():
            if top1[column] is not None:
                yield _classifier(f"convnextv2_{size}.{tag}", "imagenet", (top1[column], _V2))


def _robustness() -> Iterator[Row]:
    for hub in _TIMM:
        # Without the paper's number beside it, the clean accuracy is in the other tables.
        further = ("imagenet_real", "imagenet_v2")
        for test_set in (*_ROBUST_SETS, *further) if hub in _ROBUST else _TIMM_SETS[1:]:
            note = _CORRUPTED if test_set in ("imagenet_c", "imagenet_c_bar") else ""
            if hub in _ROBUST and hub.endswith("_384") and test_set in ("imagenet_a", "imagenet_r"):
                note = _AT_384
            by_paper = _of(_ROBUST, _ROBUST_SETS, hub, test_set)
            yield _classifier(hub, test_set, (by_paper, _TABLE_8), note=note)


def _ade20k() -> Iterator[Row]:
    for (size, before), (side, by_paper, by_mmseg, hub) in _ADE20K.items():
        said = zip(METRICS["ade20k"], by_paper, (7, 4), by_mmseg, _MMSEG, strict=True)
        for metric, value, table, mmsegs, source in said:
            yield Row(
                model=f"UPerNet, ConvNeXt-{_letter(size)}",
                data=f"ImageNet-{before.upper()}, then ADE20K",
                size=side,
                test_set="ade20k",
                metric=metric,
                hub=None if hub is None else f"hf-hub:openmmlab/upernet-convnext-{hub}",
                file=f"upernet_convnext_{size}_{before}_{side}x{side}.pth",
                published=_published((value, f"paper, table {table}"), (mmsegs, source)),
                tolerance=TOLERANCES["ade20k"],
                note=_MMSEG_ON_HUB if hub else "",
            )


def _coco() -> Iterator[Row]:
    for (detector, size, before), (by_paper, by_mmdet) in _COCO.items():
        metrics = zip(METRICS["coco"], by_paper, by_mmdet or (None, None), strict=True)
        for metric, value, mmdets in metrics:
            yield Row(
                model=f"{_DETECTORS[detector]}, ConvNeXt-{_letter(size)}",
                data=f"ImageNet-{before.upper()}, then COCO",
                size=_COCO_LONGER_SIDE,
                test_set="coco",
                metric=metric,
                hub=None,
                file=f"{detector}_convnext_{size}_{before}_3x.pth",
                published=_published((value, "paper, table 3"), (mmdets, _MMDET)),
                tolerance=TOLERANCES["coco"],
            )


TABLES: dict[str, Table] = {
    name: Table(name, title, tuple(rows))
    for name, title, rows in (
        ("imagenet1k", "Trained on ImageNet-1K (table 1)", _imagenet1k()),
        ("imagenet22k", "ImageNet-22K, then ImageNet-1K (table 1)", _imagenet22k()),
        ("isotropic", "Isotropic models on ImageNet-1K (table 2)", _isotropic()),
        ("v2", "ConvNeXt V2 on ImageNet-1K (arXiv 2301.00808, main results)", _v2()),
        ("robustness", "Robustness (table 8; further sizes and sets: timm)", _robustness()),
        ("ade20k", "Segmentation of ADE20K, UPerNet (tables 4 and 7)", _ade20k()),
        ("coco", "Detection on COCO, Mask R-CNN and Cascade (table 3)", _coco()),
    )
}
