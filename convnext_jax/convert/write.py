"""Parameters of a model of this project as files that other implementations load."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax import progress, tree
from convnext_jax.convert import recognise
from convnext_jax.convert.formats import DIALECTS, Dialect
from convnext_jax.convert.heads import TITLES
from convnext_jax.convert.hf_upernet import upernet_config, upernet_preprocessor
from convnext_jax.convert.keys import ONES_AFTER, Entry, key_map
from convnext_jax.convert.published import PIL_FILTERS, TIMM_ARGUMENTS
from convnext_jax.convert.read import META
from convnext_jax.convert.recognise import Structure
from convnext_jax.convert.safetensors_files import write_safetensors
from convnext_jax.convert.torch_files import write_pickle
from convnext_jax.convert.upernet_rows import counters
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import ROADMAP, Preprocessing

EXPORTS = ("facebook", "timm", "torchvision", "hf", "mmseg", "mmdet")

# timm computes the perceptrons of these with 1x1 convolutions.
_CONVOLUTION_PERCEPTRONS = (
    *("convnext_zepto_rms", "convnext_zepto_rms_ols", "convnext_atto", "convnext_atto_ols"),
    *("convnext_atto_rms", "convnext_femto", "convnext_femto_ols", "convnext_pico"),
    *("convnext_pico_ols", "convnext_nano", "convnext_nano_ols", "convnext_tiny_hnf"),
    *("convnextv2_atto", "convnextv2_femto", "convnextv2_pico", "convnextv2_nano"),
)
_PICKLES = (".pth", ".pt", ".bin")


def export(
    params: Any,
    model_name: str,
    format: str,
    path: Path,
    *,
    batch_stats: Any = None,
    overrides: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes parameters in another implementation's format.

    Args:
      params: tree of float32 arrays, the model's parameters.
      model_name: of the model, and with that of what to create on the other side.
      format: one of `EXPORTS`. `facebook` writes the state dict under `model`, of what segments or
        detects, like `mmseg` and `mmdet`, under `state_dict`, as published files do; `timm` and
        `torchvision` the bare state dict.
      path: for `hf` a folder, which `from_pretrained` opens; otherwise a `.pth`, `.pt` or `.bin`
        file, which needs PyTorch, or a `.safetensors` file. It appears when it is complete. For
        `timm` also a folder, a path without an ending, which `timm.create_model` opens as
        `local-dir:PATH` and which the Hub takes.
      batch_stats: tree of float32 arrays, the model's batch statistics; None: it has none.
      overrides: keyword arguments of `create_model` by which the model differs from its variant.
      preprocessing: how images are fed to the model, which folders note; None: as the variant's.
      class_names: one for each class, which folders note, and PyTorch's files of what segments or
        detects.

    Raises:
      InputError: the format cannot express the model, the parameters are not the model's, or
        `path` cannot be written.
    """
    if model_name in ROADMAP:
        raise InputError(f"{model_name} cannot be written: other formats are for published models")
    leaves = tree.flatten_with_names(params) | tree.flatten_with_names(batch_stats or {})
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    found = recognise.structure_of({name: array.shape for name, array in arrays.items()})
    given = dict(overrides or {})
    expected = recognise.array_shapes(model_name, found.num_classes, given)
    difference = tree.first_difference(arrays, expected)
    if difference is not None:
        raise InputError(f"the parameters are not those of {model_name}: {difference}")
    if class_names is not None and len(class_names) != found.num_classes:
        raise InputError(
            f"`class_names` (={len(class_names)} of them) must be as many as the classes"
            f" (={found.num_classes})"
        )
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise InputError(f"`{name}` must be float32 to be written, not {array.dtype}")
    entries = export_map(model_name, format, found, given)
    unseen = counters(entries)

    def tensor(theirs: str) -> np.ndarray:
        if theirs in unseen:
            return np.zeros((), np.int64)
        entry = entries[theirs]
        progress.moved(arrays[entry.ours].nbytes)
        return entry.write(arrays[entry.ours])

    shapes = {theirs: entry.shapes[0] for theirs, entry in entries.items()}
    shapes |= dict.fromkeys(unseen, ())
    try:
        if format == "hf" or format == "timm" and not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
            feed = get_variant(model_name) if preprocessing is None else preprocessing
            if format == "timm":
                settings = {
                    "config.json": _timm_config(model_name, found, given, feed, class_names)
                }
            else:
                settings = {
                    "config.json": _hf_config(model_name, found, given, feed, class_names),
                    "preprocessor_config.json": (
                        upernet_preprocessor(feed) if found.heads else _hf_preprocessor(feed)
                    ),
                }
            for name, content in settings.items():
                text = json.dumps(content, indent=2) + "\n"
                _complete(path / name, lambda part, text=text: part.write_text(text))
            path = path / "model.safetensors"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            about = {"format": "pt"}  # transformers and timm insist on it.
            _complete(path, lambda part: write_safetensors(part, shapes, tensor, about, unseen))
        elif path.suffix in _PICKLES:
            state = {theirs: tensor(theirs) for theirs in shapes}
            under, beside = "model" if format == "facebook" else None, {}
            if found.heads:
                under = "state_dict"
                names = None if class_names is None else list(class_names)
                if found.heads == "upernet":  # mmsegmentation asks for both
                    beside[META] = {"CLASSES": names, "PALETTE": None}
                else:  # mmdetection has names of its own where there are none
                    beside[META] = {} if names is None else {"CLASSES": names}
            _complete(path, lambda part: write_pickle(part, state, under, beside))
        else:
            endings = ", ".join((*_PICKLES, ".safetensors"))
            raise InputError(f"the output (={path}) must end in one of {endings}")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def _complete(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path`, which takes its name when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def export_map(
    model_name: str, format: str, found: Structure, overrides: Mapping[str, Any]
) -> dict[str, Entry]:
    """Where each parameter of a model goes in a format.

    Args:
      model_name: of the model.
      format: one of `EXPORTS`.
      found: the model's structure.
      overrides: as in `export`.

    Returns:
      Entries by the format's names.

    Raises:
      InputError: there is no such format, or it cannot express the model.
    """
    if format not in EXPORTS:
        raise InputError(f"`--to` (={format}) must be one of {', '.join(EXPORTS)}")
    variant = get_variant(model_name)
    eps = overrides.get("norm_eps", variant.norm_eps)
    activation = overrides.get("activation", variant.activation)
    known = any((d.format, d.heads) == (format, found.heads) for d in DIALECTS)
    rules = [
        ("isotropic models", not found.isotropic or format == "facebook"),
        (TITLES[found.heads] if found.heads else "classifiers", known),
    ]
    if format != "timm":
        rules += [
            ("overlapping stems", len(found.stem) == 1),
            ("norms without bias", found.norm_bias),
            ("norms before the pooling", not found.head_norm_first),
            ("hidden layers in the head", found.head_hidden_size is None),
            (f"norms with epsilon {eps}", eps == 1e-6),
            (f"the activation {activation}", activation == "gelu"),
            (f"filters of sizes {found.kernel_sizes}", set(found.kernel_sizes) == {7}),
            ("blocks with both GRN and layer scale", not (found.grn and found.layer_scale)),
        ]
    if format == "torchvision":
        rules += [
            ("GRN", not found.grn),
            ("blocks without layer scale", found.layer_scale),
            ("models without a head", found.num_classes > 0),
        ]
    missing = [words for words, holds in rules if not holds]
    if missing:
        raise InputError(f"{model_name} cannot be written: {format} has no {', no '.join(missing)}")
    dialect = _dialect(format, found, overrides.get("stem", variant.stem))
    shapes = recognise.flat_shapes(recognise.array_shapes(model_name, found.num_classes, overrides))
    entries = key_map(dialect.rows, shapes)
    homeless = [name for name in shapes if name not in entries]
    if homeless:
        raise InputError(f"{model_name} cannot be written for {format}: no place for {homeless}")
    if format == "timm" and model_name in _CONVOLUTION_PERCEPTRONS:
        for ours, entry in entries.items():
            if ONES_AFTER in entry.layouts:
                entries[ours] = dataclasses.replace(entry, layouts=(ONES_AFTER,))
    return {entry.theirs: entry for entry in entries.values()}


def _dialect(format: str, found: Structure, stem: str) -> Dialect:
    names = {
        "facebook": "facebook, isotropic" if found.isotropic else "facebook",
        "timm": "timm, activation in the stem" if stem == "overlap_act" else "timm",
        "torchvision": "torchvision",
        "hf": f"hf, {_hf_prefix(found) if found.num_classes else ''}",
    }
    name = f"{format}, {TITLES[found.heads]}" if found.heads else names[format]
    return next(dialect for dialect in DIALECTS if dialect.name == name)


def _timm_config(
    model_name: str,
    found: Structure,
    overrides: Mapping[str, Any],
    feed: Preprocessing,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """What timm's Hub folders say of a model (`timm.models.save_for_hf`)."""
    channels = overrides.get("in_channels", 3)
    config: dict[str, Any] = {
        "architecture": model_name,
        "num_classes": found.num_classes,
        "pretrained_cfg": {
            "input_size": [channels, feed.input_size, feed.input_size],
            "fixed_input_size": False,
            "interpolation": feed.interpolation,
            "crop_pct": feed.crop_fraction,
            "crop_mode": feed.crop_mode,
            "mean": list(feed.mean),
            "std": list(feed.std),
            "num_classes": found.num_classes,
            "pool_size": [feed.input_size // 32] * 2,
            "first_conv": "stem.0",
            "classifier": "head.fc",
        },
        "model_args": {
            TIMM_ARGUMENTS[key]: list(value) if isinstance(value, tuple) else value
            for key, value in overrides.items()
            if key in TIMM_ARGUMENTS
        },
    }
    if class_names is not None:
        config["label_names"] = list(class_names)
    return config


def _hf_prefix(found: Structure) -> str:
    return "convnextv2." if found.grn else "convnext."


def _hf_config(
    model_name: str,
    found: Structure,
    overrides: Mapping[str, Any],
    feed: Preprocessing,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    family = "ConvNextV2" if found.grn else "ConvNext"
    task = "ForImageClassification" if found.num_classes else "Model"
    variant = get_variant(model_name)
    config: dict[str, Any] = {
        "architectures": [family + task],
        "model_type": family.lower(),
        "num_channels": found.in_channels,
        "patch_size": 4,
        "num_stages": len(found.depths),
        "depths": list(found.depths),
        "hidden_sizes": list(found.dims),
        "hidden_act": "gelu",
        "layer_norm_eps": overrides.get("norm_eps", variant.norm_eps),
        "image_size": feed.input_size,
        "dtype": "float32",
    }
    if not found.grn:
        # Only whether it is 0 matters to a model whose weights are loaded.
        config["layer_scale_init_value"] = 1e-6 if found.layer_scale else 0.0
    if found.heads:
        del config["architectures"]
        config = upernet_config(config, found)
    if found.num_classes:
        names = class_names or [f"LABEL_{i}" for i in range(found.num_classes)]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    return config


def _hf_preprocessor(feed: Preprocessing) -> dict[str, Any]:
    """The settings of the image processor that does the same.

    ConvNeXt's own crops below 384 pixels only, and squashes from there on; what it cannot express
    is written for CLIP's, which resizes and crops as it is told.
    """
    size = feed.input_size
    squash, whole = feed.crop_mode == "squash", feed.crop_fraction == 1.0
    if squash == (size >= 384) and (whole or not squash):
        processor: dict[str, Any] = {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": size},
            "crop_pct": feed.crop_fraction,
        }
    else:
        resized = int(size / feed.crop_fraction)
        sides = ("height", "width") if squash else ("shortest_edge",)
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": dict.fromkeys(sides, resized),
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
            "do_convert_rgb": True,
        }
    return processor | {
        "do_resize": True,
        "resample": PIL_FILTERS[feed.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(feed.mean),
        "image_std": list(feed.std),
    }
