"""What is said beside the weights of a UPerNet: windows, licence, and what it computes.

Weights do not show what size of crops they were trained on, and so are evaluated in. Sources are
Hugging Face's settings, the text of mmcv's config in a file's `meta`, and the names of files.
"""

import ast
import dataclasses
import re
from typing import Any

from convnext_jax.constants import ADE20K_CLASSES
from convnext_jax.convert import config_text, published
from convnext_jax.convert.config_text import Settings
from convnext_jax.convert.formats import Dialect
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import Preprocessing

# Names of the publishers' files and repositories, and the side of the windows in pixels. Hugging
# Face's settings have 512 for all; the large ones were trained on 640.
_PUBLISHED = (
    (r"upernet_convnext_(tiny|small|base)_1k_512x512\.pth", 512),
    (r"upernet_convnext_(base|large|xlarge)_22k_640x640\.pth", 640),
    (r"openmmlab/upernet-convnext-(tiny|small|base)", 512),
    (r"openmmlab/upernet-convnext-(large|xlarge)", 640),
)
_LICENCE = "MIT"  # of all of them

SQUASHES = (
    "Hugging Face's image processor squashes images to {squash}x{squash}; here they keep their"
    " shape and are seen in windows of {side} pixels, as the reference evaluates"
)

# What shapes do not show, and would compute something else; mmsegmentation's names and ours.
_COMPUTES: dict[str, Any] = {
    "pool_scales": (1, 2, 3, 6),
    "align_corners": False,
    "to_rgb": True,
    "bgr_to_rgb": True,
}


def check(settings: Settings, model: str) -> None:
    """Raises an InputError if the settings describe a model that computes something else."""
    config = settings.get("config.json", {})
    backbone = config.get("backbone_config") or {}
    activation = get_variant(model).activation
    said = [
        ("`config.json`", "pool_scales", config.get("pool_scales"), _COMPUTES["pool_scales"]),
        ("`config.json`", "hidden_act", backbone.get("hidden_act"), activation),
    ]
    text = config_text.parse(settings)
    said += [
        ("the config in its `meta`", key, value, ours)
        for key, ours in _COMPUTES.items()
        for value in config_text.literals(text, key)
    ]
    for where, key, value, ours in said:
        value = tuple(value) if isinstance(value, list) else value
        if value is not None and value != ours:
            raise InputError(f"{where} has `{key}` {value}, but {model} has {ours}")


def licence_of(name: str, model: str, num_classes: int) -> str | None:
    """The licence of published weights by the name of their file or repository, SPDX; or None."""
    return None if _published_side(name, model, num_classes) is None else _LICENCE


def preprocessing_of(
    name: str, model: str, num_classes: int, dialect: Dialect, settings: Settings
) -> tuple[Preprocessing, list[str]]:
    """How images are fed to weights: in windows, as the reference evaluates, whoever trained them.

    Args:
      name: of the file, with folders or as an URL, or of the repository (`hf-hub:...`).
      model: what the file's tensors are.
      num_classes: the same.
      dialect: what the file's names are.
      settings: what is said beside the weights.

    Returns:
      Sizes by, in this order: the config in `meta`; a published name; Hugging Face's image
      processor; `640x640` in the name of a file; the variant. And sentences on what is not as said.
    """
    variant = get_variant(model)
    fed = published.preprocessing_of(model, None, dialect, settings)
    text = config_text.parse(settings)
    windows = _windows(text)
    known = _published_side(name, model, num_classes)
    in_name = re.search(r"(?<!\d)(\d+)x\1(?!\d)", _last_part(name))
    side, fraction, notes = fed.input_size, variant.crop_fraction, []
    if windows is not None:
        (height, width), resized = windows
        side = min(height, width)
        fraction = side / resized
        if height != width:
            notes.append(
                f"its config has windows of {height}x{width} pixels; here they are square, of"
                f" {side}"
            )
    elif known is not None:
        side = known
    elif "size" not in settings.get("preprocessor_config.json", {}):
        if in_name:
            side = int(in_name[1])
        else:
            notes.append(
                "neither the file nor its name (such as x_640x640.pth) says on crops of what size"
                f" it was trained; images are seen in windows of {side} pixels"
            )
    if fed.crop_mode == "squash":
        notes.append(SQUASHES.format(squash=fed.input_size, side=side))
    fed = dataclasses.replace(
        fed,
        input_size=side,
        crop_fraction=fraction,
        crop_mode=variant.crop_mode,
        interpolation=variant.interpolation,
        **config_text.normalisation(text),
    )
    return fed, notes


def _last_part(name: str) -> str:
    """The name of a file, without folders, server or what an URL asks it."""
    return name.partition("?")[0].rstrip("/").rpartition("/")[2]


def _published_side(name: str, model: str, num_classes: int) -> int | None:
    whole = name.removeprefix("hf-hub:").partition("@")[0].rstrip("/")
    for pattern, side in _PUBLISHED:
        found = re.fullmatch(pattern, whole if "/" in pattern else _last_part(name))
        # Weights of another model are not it, whatever the name.
        if found and (model, num_classes) == (f"upernet_convnext_{found[1]}", ADE20K_CLASSES):
            return side
    return None


def _windows(text: ast.AST | None) -> tuple[tuple[int, int], int] | None:
    """Height and width of windows, and what the shorter side of images is resized to; pixels.

    None: the config does not say the former, or says several. What it does not say of the latter
    is as in the paper, where both are the same.
    """
    tests = [
        pair
        for test in config_text.values(text, "test_cfg")
        for pair in config_text.pairs(test, "crop_size")
    ]
    crops = set(tests) if tests else set(config_text.pairs(text, "crop_size"))
    if len(crops) != 1:
        return None
    (crop,) = crops
    sizes = {
        pair
        for pipeline in config_text.values(text, "test_pipeline")
        for key in ("img_scale", "scale")
        for pair in config_text.pairs(pipeline, key)
    }
    return crop, min(sizes.pop()) if len(sizes) == 1 else min(crop)
