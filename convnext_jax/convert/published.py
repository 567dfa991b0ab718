"""What names and settings beside weights say: which published ones, fed how, for which classes."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from convnext_jax.convert.formats import Dialect
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import NOT_ON_HUB, PRETRAINED, Pretrained
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import CLASSIFIERS, CLIP_MEAN, CLIP_STD, Preprocessing

# File and repository names of the publishers, and timm's tag for the same weights; MODEL stands for
# the model's own name. (V2's "22k" files, also in "im22k" folders, are 22K models fine-tuned on 1K:
# 1000 classes.)
_TAGS = (
    (r"convnext_\w+_1k_224(_ema)?\.pth", "fb_in1k"),
    (r"convnext_\w+_1k_384\.pth", "fb_in1k_384"),
    (r"convnext_\w+_22k_224\.pth", "fb_in22k"),
    (r"convnext_\w+_22k_1k_224(_ema)?\.pth", "fb_in22k_ft_in1k"),
    (r"convnext_\w+_22k_1k_384(_ema)?\.pth", "fb_in22k_ft_in1k_384"),
    (r"MODEL_1k_3x\.pth", "fb_in1k_ft_coco"),
    (r"MODEL_22k_3x\.pth", "fb_in22k_ft_coco"),
    (r"convnextv2_\w+_fcmae\.pt", "fcmae"),
    (r"convnextv2_\w+_1k_224_ema\.pt", "fcmae_ft_in1k"),
    (r"convnextv2_\w+_22k_224_ema\.pt", "fcmae_ft_in22k_in1k"),
    (r"convnextv2_\w+_22k_384_ema\.pt", "fcmae_ft_in22k_in1k_384"),
    (r"convnextv2_\w+_22k_512_ema\.pt", "fcmae_ft_in22k_in1k_512"),
    (r"dinov3_convnext_\w+_pretrain_lvd1689m.*\.pth", "dinov3_lvd1689m"),
    (r"facebook/convnext-\w+-224", "fb_in1k"),
    (r"facebook/convnext-\w+-224-22k", "fb_in22k"),
    (r"facebook/convnext-\w+-224-22k-1k", "fb_in22k_ft_in1k"),
    (r"facebook/convnext-\w+-384-22k-1k", "fb_in22k_ft_in1k_384"),
    (r"facebook/convnextv2-\w+-1k-224", "fcmae_ft_in1k"),
    (r"facebook/convnextv2-\w+-22k-224", "fcmae_ft_in22k_in1k"),
    (r"facebook/convnextv2-\w+-22k-384", "fcmae_ft_in22k_in1k_384"),
    (r"facebook/convnextv2-\w+-22k-512", "fcmae_ft_in22k_in1k_512"),
    (r"facebook/dinov3-convnext-\w+-pretrain-lvd1689m", "dinov3_lvd1689m"),
)

# torchvision's files, and the side that images are resized to, bilinearly, before 224 are cut out.
_TORCHVISION_SIDES = {
    "convnext_tiny-983f1562.pth": 236,
    "convnext_small-0c510722.pth": 230,
    "convnext_base-6075fbad.pth": 232,
    "convnext_large-ea097f82.pth": 232,
    "resnet50-0676ba61.pth": 256,
    "resnet50-11ad3fa6.pth": 232,
}

# Licences of the weights that a format's name alone is enough to know.
_LICENCES = {
    "dinov3": "dinov3-license",
    "dinov3, EUPE": "fair-noncommercial-research-license",
    "facebook, FCMAE encoder": "CC-BY-NC-4.0",
    "hf_dinov3, ": "dinov3-license",
    "hf_dinov3, model.": "dinov3-license",
}

# Overrides of ours that change what timm builds, and its names for them.
TIMM_ARGUMENTS = {
    "depths": "depths",
    "dims": "dims",
    "in_channels": "in_chans",
    "kernel_size": "kernel_sizes",
    "norm_eps": "norm_eps",
    "head_hidden_size": "head_hidden_size",
}

# PIL's numbers of its filters, which Hugging Face's settings have.
PIL_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def find_published(name: str, model: str, num_classes: int) -> Pretrained | None:
    """The published weights that a file's or repository's name stands for, or None.

    Args:
      name: of the file, with folders or as an URL, or of the repository (`hf-hub:...`).
      model: what the file's tensors are; weights of another one are not it, whatever the name.
      num_classes: the same.
    """
    known = PRETRAINED | NOT_ON_HUB
    name, file = _plain(name), _file_of(name)
    # timm's own names, as of its repositories and of files called after them.
    found = PRETRAINED.get(re.sub(r"\.(safetensors|bin|pth|pt)$", "", file))
    for pattern, tag in _TAGS:
        pattern = pattern.replace("MODEL", model)
        if re.fullmatch(pattern, name if pattern.startswith("facebook/") else file):
            found = known.get(f"{model}.{tag}")
    fits = found is not None and (found.variant, found.num_classes) == (model, num_classes)
    return found if fits else None


def licence_of(
    published: Pretrained | None, dialect: Dialect, settings: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """The licence of weights as far as it is known: SPDX, or timm's name for it.

    In this order: what is known of these published weights; what the settings beside them say; the
    licence of all weights in the dialect.
    """
    if published is not None:
        return published.licence
    said = (settings.get("config.json", {}).get("pretrained_cfg") or {}).get("license")
    return said if said is not None else _LICENCES.get(dialect.name)


def preprocessing_of(
    model: str,
    published: Pretrained | None,
    dialect: Dialect,
    settings: Mapping[str, Mapping[str, Any]],
    name: str = "",
) -> Preprocessing:
    """How images are fed to weights.

    In this order: what the settings beside the weights say; what is known of these published
    weights (torchvision's are known by `name`, their file's or its URL); CLIP's mean and standard
    deviation for OpenCLIP; the variant's.
    """
    base = published if published is not None else get_variant(model)
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(Preprocessing)}
    if published is None and dialect.format == "openclip":
        fields |= {"mean": CLIP_MEAN, "std": CLIP_STD}
    side = _TORCHVISION_SIDES.get(_file_of(name))
    if dialect.format == "torchvision" and side is not None:
        fields |= {"crop_fraction": _fraction(224, side), "interpolation": "bilinear"}
    fields |= _from_timm(settings.get("config.json", {}).get("pretrained_cfg") or {})
    fields |= _from_hf(settings.get("preprocessor_config.json", {}))
    return Preprocessing(**fields)


def _from_timm(said: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        field: said[theirs]
        for field, theirs in (
            ("crop_fraction", "crop_pct"),
            ("crop_mode", "crop_mode"),
            ("interpolation", "interpolation"),
        )
        if theirs in said
    }
    fields |= {field: tuple(said[field]) for field in ("mean", "std") if field in said}
    if "input_size" in said:
        fields["input_size"] = said["input_size"][1]  # channels, height, width
    return fields


def _fraction(cut: int, resized: int) -> float:
    """The share that is cut out, such that what is resized to comes out of it without rounding."""
    fraction = cut / resized
    while int(cut / fraction) < resized:
        fraction = math.nextafter(fraction, 0)
    return fraction


def _plain(name: str) -> str:
    """A repository without its revision, or a file or URL without what is asked of a server."""
    return name.removeprefix("hf-hub:").partition("@")[0].partition("?")[0].rstrip("/")


def _file_of(name: str) -> str:
    """The last part of a name."""
    return _plain(name).rpartition("/")[2]


def _from_hf(said: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        field: tuple(said[theirs])
        for field, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in said
    }
    size = said.get("size")
    if isinstance(size, Mapping) and "height" in size:  # Both sides are given: nothing is cut off.
        fields |= {"input_size": size["height"], "crop_fraction": 1.0, "crop_mode": "squash"}
    size = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if isinstance(size, int):
        fields["input_size"] = size
        # ConvNextImageProcessor crops below 384 pixels only; from there on it squashes.
        if size >= 384:
            fields |= {"crop_fraction": 1.0, "crop_mode": "squash"}
        elif "crop_pct" in said:
            fields["crop_fraction"] = said["crop_pct"]
    crop = said.get("crop_size")
    if said.get("do_center_crop") and isinstance(crop, Mapping) and "input_size" in fields:
        # CLIP's processor: the sizes before and after cropping are given, each by itself.
        resized, cut = fields["input_size"], crop["height"]
        squash = isinstance(said["size"], Mapping) and "height" in said["size"]
        fields |= {"input_size": cut, "crop_fraction": _fraction(cut, resized)}
        fields["crop_mode"] = "squash" if squash else "center"
    if said:
        fields["exif"] = True  # transformers turns images as it loads them
    names = {number: name for name, number in PIL_FILTERS.items()}
    if said.get("resample") in names:
        fields["interpolation"] = names[said["resample"]]
    return fields


def class_names_of(
    settings: Mapping[str, Mapping[str, Any]], num_classes: int
) -> tuple[str, ...] | None:
    """The names of the classes that the settings beside the weights give, or None.

    Raises:
      InputError: they name another number of classes.
    """
    config = settings.get("config.json", {})
    names = config.get("label_names")
    labels = config.get("id2label")
    if names is None and isinstance(labels, Mapping):
        names = [labels[key] for key in sorted(labels, key=int)]
        if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
            return None  # Hugging Face's placeholders.
    if names is None or num_classes == 0:
        return None
    if len(names) != num_classes:
        raise InputError(
            f"`config.json` names {len(names)} classes, but the weights are for {num_classes}"
        )
    return tuple(map(str, names))


def declared_model(
    settings: Mapping[str, Mapping[str, Any]], depths: Sequence[int], dims: Sequence[int]
) -> tuple[str, dict[str, Any]] | None:
    """The model that timm's settings beside the weights name, and its overrides.

    Args:
      settings: files beside the weights, by name.
      depths: of the weights.
      dims: likewise.

    Returns:
      What `create_model` is given, but for what shapes say; None where they name none of our
      models or one of other sizes, or say no more than its name.
    """
    config = settings.get("config.json", {})
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if not isinstance(name, str) or name not in CLASSIFIERS or not isinstance(arguments, Mapping):
        return None
    usual = {"depths": CLASSIFIERS[name].depths, "dims": CLASSIFIERS[name].dims}
    said = [arguments.get(key, usual[key]) for key in ("depths", "dims")]
    if [list(x) if isinstance(x, list | tuple) else x for x in said] != [list(depths), list(dims)]:
        return None
    given = ("depths", "dims", "norm_eps", "head_hidden_size")  # the others are seen from shapes
    overrides = {key: arguments[TIMM_ARGUMENTS[key]] for key in given if key in arguments}
    if not overrides:
        return None
    return name, {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}


_RESNETS = ("resnet50", "resnet101", "resnet152", "resnet200", "tv_resnet50", "tv_resnet101")


def check_settings(
    settings: Mapping[str, Mapping[str, Any]], model: str, overrides: Mapping[str, Any]
) -> None:
    """Raises an InputError if the settings describe a model that computes something else."""
    config = settings.get("config.json", {})
    variant = get_variant(model)
    arguments = config.get("model_args") or {}
    for said, key, ours in (
        (config.get("hidden_act"), "hidden_act", variant.activation),
        (arguments.get("act_layer"), "act_layer", variant.activation),
        (arguments.get("norm_eps"), "norm_eps", overrides.get("norm_eps", variant.norm_eps)),
    ):
        if said is not None and said != ours:
            raise InputError(f"`config.json` has `{key}` {said}, but {model} has {ours}")
    # Others with the same tensors differ in what has none, such as filters against aliasing.
    said = config.get("architecture")
    if variant.architecture == "roadmap" and said not in (None, *_RESNETS):
        raise InputError(f"`config.json` has `architecture` {said}, which is not {model}")
