"""What is said beside the weights of a detector: what it computes, and how images are fed to it.

Weights do not show anchors, thresholds, or how many boxes go from one part to the next. The source
is the text of mmdetection's config in a file's `meta`; without one a detector is the paper's.
"""

import dataclasses
import math
from typing import Any, NamedTuple, TypeGuard

from convnext_jax.convert import config_text, published
from convnext_jax.convert import detector_keys as keys
from convnext_jax.convert.config_text import Settings
from convnext_jax.convert.formats import Dialect
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import Preprocessing

_WHERE = "the config in its `meta`"


class Said(NamedTuple):
    """What a config says of a model.

    Attributes:
      overrides: keyword arguments of `create_model` by which it differs from the variant.
      notes: sentences on what is not as there.
    """

    overrides: dict[str, Any]
    notes: list[str]


def read_config(settings: Settings, model: str) -> Said:
    """Compares the config beside the weights with what is computed here, key by key.

    Raises:
      InputError: it describes a model that finds something else.
    """
    architecture = get_variant(model).architecture
    taken: dict[str, tuple[str, float]] = {
        **keys.TAKEN,
        **dict.fromkeys(keys.AFTER_TRAIN_KEYS, ("rpn_after_train", keys.AFTER_TRAIN[architecture])),
    }
    said: dict[str, tuple[str, Any]] = {}  # of each argument
    usual: dict[str, float] = {}
    trained, unknown = [], []
    for path, value in _model(settings).items():
        parts = path.split(".")
        key = ".".join(part for part in parts if not part.isdigit())
        stage = next((int(part) for part in parts if part.isdigit()), None)
        ours = _ours(architecture, key, stage)
        if key in taken and _is_number(value):
            argument, usual[argument] = taken[key]
            before = said.setdefault(argument, (path, value))
            if before[1] != value:
                raise InputError(
                    f"{_WHERE} has `{before[0]}` {before[1]} and `{path}` {value}, which here are"
                    f" one `{argument}`"
                )
        elif ours is None and not keys.NO_MATTER.fullmatch(key):
            unknown.append(f"`{path or 'model'}` ({value})")
        elif ours is not None and not (ours and all(_same(value, x) for x in ours)):
            expected = " and ".join(map(str, ours)) if ours else "no such stage"
            if key in keys.COMPUTES | keys.COMPUTES_ALSO[architecture] | keys.STAGES:
                if not key.startswith("train_cfg."):
                    raise InputError(f"{_WHERE} has `{path}` {value}, but {model} has {expected}")
            trained.append(f"`{path}` {value} ({expected})")
    notes = []
    if trained:
        notes.append(
            "it was trained with other settings than further training here has (in brackets):"
            f" {', '.join(trained)}"
        )
    if unknown:
        notes.append(
            "its config has settings that were not compared with what is computed here:"
            f" {', '.join(unknown)}"
        )
    overrides = {name: value for name, (_, value) in said.items() if value != usual[name]}
    return Said(overrides, notes)


def _ours(architecture: str, key: str, stage: int | None) -> list[Any] | None:
    """What a key must be: one value, or of all stages theirs. None: the key is not known."""
    if key in keys.STAGES:
        stages = keys.STAGES[key] if architecture == "cascade_mask_rcnn" else keys.STAGES[key][:1]
        return stages if stage is None else stages[stage : stage + 1]
    for table in (keys.COMPUTES_ALSO[architecture], keys.TRAINS_ALSO[architecture]):
        if key in table:
            return [table[key]]
    both = keys.COMPUTES | keys.TRAINS
    return [both[key]] if key in both else None


def _model(settings: Settings) -> dict[str, Any]:
    """What the config says of the model, by paths; empty: there is none, or it cannot be read."""
    text = config_text.parse(settings)
    found = config_text.leaves(config_text.variable(text, "model"))
    for name in ("train_cfg", "test_cfg"):  # beside the model before mmdetection 2.7
        # mmengine's loops have those names too, in a config whose model has its own.
        if not any(path.startswith(f"{name}.") for path in found):
            beside = config_text.leaves(config_text.variable(text, name))
            parts = {
                path: value for path, value in beside.items() if path.startswith(("rpn", "rcnn"))
            }
            found |= {f"{name}.{path}": value for path, value in parts.items()}
    return found


def _same(value: Any, ours: Any) -> bool:
    if isinstance(value, tuple) and isinstance(ours, tuple):
        return len(value) == len(ours) and all(map(_same, value, ours))
    if _is_number(value) and _is_number(ours):
        return math.isclose(value, ours, rel_tol=1e-6)
    return value == ours


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def preprocessing_of(
    name: str, model: str, num_classes: int, dialect: Dialect, settings: Settings
) -> tuple[Preprocessing, list[str]]:
    """How images are fed to weights, and sentences on what was guessed.

    Args:
      name: of the file, with folders or as an URL, or of the repository (`hf-hub:...`).
      model: what the file's tensors are.
      num_classes: the same.
      dialect: what the file's names are.
      settings: what is said beside the weights.

    Raises:
      InputError: the config feeds images in a way that there is none of here.
    """
    known = published.find_published(name, model, num_classes)
    fed = published.preprocessing_of(model, known, dialect, settings)
    text = config_text.parse(settings)
    for key in ("to_rgb", "bgr_to_rgb"):
        if False in config_text.literals(text, key):
            raise InputError(f"{_WHERE} has `{key}` False, but {model} is fed with RGB")
    tests = [*config_text.values(text, "test_pipeline")]
    for key, ours in (("keep_ratio", True), ("size_divisor", 32)):
        for value in (x for test in tests for x in config_text.literals(test, key)):
            if value != ours:
                raise InputError(
                    f"{_WHERE} has `{key}` {value} in its `test_pipeline`, but {model} has {ours}"
                )
    sizes = {
        pair
        for test in tests
        for key in ("img_scale", "scale")
        for pair in config_text.pairs(test, key)
    }
    notes = []
    if len(sizes) == 1:
        (size,) = sizes
        fed = dataclasses.replace(fed, input_size=min(size), longest_side=max(size))
    elif known is None:
        notes.append(
            "neither its config nor its name says in what size it saw images; their shorter side is"
            f" resized to {fed.input_size} pixels, and the longer one to {fed.longest_side} at most"
        )
    return dataclasses.replace(fed, **config_text.normalisation(text)), notes


def licence_of(name: str, model: str, num_classes: int) -> str | None:
    """The licence of published weights by the name of their file, SPDX; or None."""
    known = published.find_published(name, model, num_classes)
    return None if known is None else known.licence
