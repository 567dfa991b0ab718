"""Converts weights: `python -m convnext_jax.convert SOURCE OUTPUT [--to FORMAT]`.

From any PyTorch format, or a checkpoint of ours, to a checkpoint of ours or, with `--to`, to a
PyTorch format. Format and model of the source are recognised.
"""

from convnext_jax import interrupts

if __name__ == "__main__":  # before the imports, which take seconds
    interrupts.listen()

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from convnext_jax import builders, sharding
from convnext_jax.checkpointing.manager import (
    Checkpoints,
    completed_steps,
    find_step,
    read_description,
)
from convnext_jax.convert.formats import FORMATS
from convnext_jax.convert.loading import Converted, load
from convnext_jax.convert.write import EXPORTS, export
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.models.spec import ModelDescription, ModelSpec

# What a converted checkpoint says of its origin, beside what every checkpoint does.
_ORIGIN = ("source", "format", "sha256", "licence", "notes")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convnext_jax.convert", description="Convert ConvNeXt weights."
    )
    parser.add_argument(
        "source",
        help="file (.pth, .pt, .bin, .safetensors, .index.json), Hugging Face folder,"
        " hf-hub:organisation/name, URL, or a checkpoint of ours",
    )
    parser.add_argument("output", help="checkpoint directory; with --to a file (hf: a folder)")
    parser.add_argument("--to", choices=EXPORTS, help="PyTorch format to write")
    parser.add_argument("--format", choices=FORMATS, help="format of the source")
    parser.add_argument("--model", help="model of the source, as `list_models()` has it")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="KEY=JSON",
        help="in what the source differs from its model, such as depths=[2,2,2,2]",
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--step", default="latest", help="of our checkpoint: latest, best, number")
    parser.add_argument("--num_classes", type=int, help="a new, untrained head for so many classes")
    parser.add_argument("--in_channels", type=int, help="adapt the first layer to so many channels")
    return parser.parse_args(arguments)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text} must be KEY=JSON: {error}") from error
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text} must be KEY=JSON")
    return key, tuple(parsed) if isinstance(parsed, list) else parsed


def load_asked(arguments: argparse.Namespace) -> Converted:
    """Reads the weights that the arguments name.

    Raises:
      InputError: as `loading.load` and `load_checkpoint`.
    """
    source = Path(arguments.source)
    if any(completed_steps(place) for place in (source, source / "checkpoints", source.parent)):
        for option in ("format", "model", "override", "num_classes", "in_channels"):
            if getattr(arguments, option) not in (None, []):
                raise InputError(f"`--{option}` must not be given for a checkpoint of ours")
        return load_checkpoint(source, arguments.step, arguments.ema)
    return load(
        arguments.source,
        format=arguments.format,
        model=arguments.model,
        overrides=dict(arguments.override),
        num_classes=arguments.num_classes,
        in_channels=arguments.in_channels,
        ema=arguments.ema,
    )


def load_checkpoint(path: Path, step: str, ema: bool) -> Converted:
    """Reads one set of parameters of a checkpoint of ours.

    Args:
      path: as `find_step` takes it, and so `step`.
      step: which one.
      ema: the moving average instead of the raw parameters.

    Raises:
      InputError: there is no such checkpoint, or it has no moving average.
    """
    item = "ema" if ema else "params"
    place = find_step(path, step, f"eval_{item}_top1")
    described = read_description(*place)
    model = ModelDescription.from_json(described)
    params = builders.restore_params(model.spec, place, item, sharding.create_mesh())
    return Converted(
        model_name=model.spec.name,
        num_classes=model.spec.num_classes,
        overrides=dict(model.spec.overrides),
        params=jax.tree.map(np.array, params),
        preprocessing=model.preprocessing,
        class_names=model.class_names,
        source=str(path),
        format="convnext_jax",
        sha256=described.get("sha256", {}),
        licence=described.get("licence"),
        notes=(),
    )


def save_checkpoint(converted: Converted, output: Path) -> None:
    """Writes converted weights as a checkpoint of ours, step 0.

    Raises:
      InputError: there is a checkpoint already, or the directory cannot be written.
    """
    directory = builders.prepare_workdir(str(output)) / "checkpoints"
    if completed_steps(directory):
        raise InputError(f"`output` (={output}) must not hold a checkpoint already")
    spec = ModelSpec(converted.model_name, converted.num_classes, converted.overrides)
    model = ModelDescription(spec, converted.preprocessing, converted.class_names)
    described = model.to_json() | {key: getattr(converted, key) for key in _ORIGIN}
    checkpoints = Checkpoints(directory, best_metric="eval_params_top1")
    checkpoints.save(0, {"params": converted.params}, described)
    checkpoints.wait()
    checkpoints.close()


def report(converted: Converted) -> str:
    """What a user should know of converted weights, a few lines."""
    lines = [
        f"{converted.source}: {converted.model_name}, {converted.num_classes} classes, in the"
        f" format {converted.format}",
        *(f"SHA-256 of {name}: {digest}" for name, digest in converted.sha256.items()),
        f"licence of the weights: {converted.licence or 'unknown, ask whoever trained them'}",
        *(f"note: {note}" for note in converted.notes),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        converted = load_asked(parsed)
        if parsed.to is None:
            save_checkpoint(converted, Path(parsed.output))
        else:
            export(
                converted.params,
                converted.model_name,
                parsed.to,
                Path(parsed.output),
                overrides=converted.overrides,
                preprocessing=converted.preprocessing,
                class_names=converted.class_names,
            )
        print(report(converted))
        print(f"written: {parsed.output}" + (f", in the format {parsed.to}" if parsed.to else ""))


if __name__ == "__main__":
    main()
