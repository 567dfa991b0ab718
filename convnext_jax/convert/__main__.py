"""Converts weights: `python -m convnext_jax.convert SOURCE OUTPUT --to FORMAT`.

The formats are those of PyTorch implementations; format and model of the source are recognised.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from convnext_jax.convert.formats import FORMATS
from convnext_jax.convert.loading import Converted, load
from convnext_jax.convert.write import EXPORTS, export
from convnext_jax.errors import InputError, exit_in_one_sentence


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convnext_jax.convert", description="Convert ConvNeXt weights."
    )
    parser.add_argument(
        "source",
        help="file (.pth, .pt, .bin, .safetensors, .index.json), Hugging Face folder,"
        " hf-hub:organisation/name, or URL",
    )
    parser.add_argument("output", help="file to write; with --to hf, a folder")
    parser.add_argument("--to", choices=EXPORTS, help="format to write")
    parser.add_argument("--format", choices=FORMATS, help="format of the source")
    parser.add_argument("--model", help="model of the source, as `list_models()` has it")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    parser.add_argument("--num_classes", type=int, help="a new, untrained head for so many classes")
    parser.add_argument("--in_channels", type=int, help="adapt the first layer to so many channels")
    return parser.parse_args(arguments)


def load_asked(arguments: argparse.Namespace) -> Converted:
    """Reads the weights that the arguments name.

    Raises:
      InputError: as `loading.load`.
    """
    return load(
        arguments.source,
        format=arguments.format,
        model=arguments.model,
        num_classes=arguments.num_classes,
        in_channels=arguments.in_channels,
        ema=arguments.ema,
    )


def describe(converted: Converted) -> str:
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
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        if parsed.to is None:
            raise InputError(f"`--to` is missing; it must be one of {', '.join(EXPORTS)}")
        converted = load_asked(parsed)
        export(
            converted.params,
            converted.model_name,
            parsed.to,
            Path(parsed.output),
            overrides=converted.overrides,
            preprocessing=converted.preprocessing,
            class_names=converted.class_names,
        )
        print(describe(converted))
        print(f"written: {parsed.output}, in the format {parsed.to}")


if __name__ == "__main__":
    main()
