"""Converts weights: `python -m convnext_jax.convert SOURCE OUTPUT [--to FORMAT]`.

From any PyTorch format, or a checkpoint of ours, to a checkpoint of ours or, with `--to`, to a
PyTorch format. Format and model of the source are recognised.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin("convert")

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from convnext_jax import progress
from convnext_jax.arguments import Parser
from convnext_jax.constants import DECISIVE, PARAMETERS
from convnext_jax.convert.formats import FORMATS
from convnext_jax.convert.upernet_settings import SQUASHES
from convnext_jax.convert.write import EXPORTS, export
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.models.registry import get_variant
from convnext_jax.weights.find import NAMES, Weights, add_choices, find
from convnext_jax.weights.save import write_checkpoint

# What a converted checkpoint says of its origin, beside what every checkpoint does.
_ORIGIN = ("source", "format", "sha256", "licence", "notes")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(prog="python -m convnext_jax.convert", description="Convert ConvNeXt weights.")
    parser.add_argument("source", help=NAMES)
    parser.add_argument(
        "output", help="checkpoint directory; with --to a file, for hf a folder, for timm either"
    )
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
    add_choices(parser)
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


def find_asked(arguments: argparse.Namespace) -> Weights:
    """Finds the weights that the arguments name; raises InputError as `find`."""
    return find(
        arguments.source,
        step=arguments.step,
        ema=arguments.ema,
        format=arguments.format,
        model=arguments.model,
        overrides=dict(arguments.override),
        num_classes=arguments.num_classes,
        in_channels=arguments.in_channels,
    )


def save_checkpoint(weights: Weights, params: Any, output: str) -> None:
    """Writes weights, of which `params` were read, as a checkpoint of ours, step 0.

    Raises:
      InputError: there is a checkpoint already, or the directory cannot be written or lies in a
        bucket.
    """
    if "://" in output:
        raise InputError(f"`output` (={output}) must be a directory on a disk")
    described = weights.description.to_json() | {key: weights.origin.get(key) for key in _ORIGIN}
    described["parameters"] = weights.parameters
    described["metric"] = DECISIVE[get_variant(weights.description.spec.name).task]
    write_checkpoint(Path(output), described, params, weights.batch_stats_on_host())


def report(weights: Weights) -> str:
    """What a user should know of weights, a few lines."""
    spec, origin = weights.description.spec, weights.origin
    lines = [
        f"{weights}: {spec.name}, {spec.num_classes} classes, in the format {origin['format']},"
        f" {PARAMETERS[weights.parameters]}",
        *(f"SHA-256 of {name}: {digest}" for name, digest in origin["sha256"].items()),
        f"licence of the weights: {weights.licence or 'unknown, ask whoever trained them'}",
        *(f"note: {note}" for note in origin["notes"]),
    ]
    return "\n".join(lines)


def not_said(weights: Weights, format: str, output: Path) -> list[str]:
    """What an exported file does not say of weights, sentences for those who pass it on."""
    feeding, names = weights.description.preprocessing, weights.description.class_names
    size, mode = feeding.input_size, feeding.crop_mode
    if format == "timm" and not output.suffix:
        return []
    if format == "hf":
        return [SQUASHES.format(squash=size, side=size)] if mode == "window" else []
    has_names = mode in ("window", "fit") and names is not None and output.suffix != ".safetensors"
    lost = "" if has_names else "what the classes are called, nor "
    if mode == "fit":
        return [
            f"this file does not say {lost}that images are resized to a shorter side of {size}"
            f" pixels, or a longer one of {feeding.longest_side}, nor any setting of its model;"
            " checkpoints of ours do"
        ]
    fed = f"in windows of {size}" if mode == "window" else f"at {size}"
    return [
        f"this file does not say {lost}that images are fed {fed} pixels; `--to hf` and checkpoints"
        " of ours do, and a folder with `--to timm`"
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        with progress.watched_bytes("converting"):
            weights = find_asked(parsed)
            found = weights.description
            size = 4 * sum(
                math.prod(leaf.shape) for leaf in jax.tree.leaves(found.spec.abstract_params())
            )
            if weights.step is not None:  # files of others have told of their own sizes
                progress.expect(2 * size)
            params = weights.on_host()
            if weights.step is not None:
                progress.moved(size)
            if parsed.to is None:
                save_checkpoint(weights, params, parsed.output)
                progress.moved(size)
            else:
                export(
                    params,
                    found.spec.name,
                    parsed.to,
                    Path(parsed.output),
                    batch_stats=weights.batch_stats_on_host(),
                    overrides=found.spec.overrides,
                    preprocessing=found.preprocessing,
                    class_names=found.class_names,
                )
        print(report(weights))
        if parsed.to is not None:
            for note in not_said(weights, parsed.to, Path(parsed.output)):
                print(f"note: {note}")
        print(f"written: {parsed.output}" + (f", in the format {parsed.to}" if parsed.to else ""))


if __name__ == "__main__":
    main()
