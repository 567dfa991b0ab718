"""Writes a model for other run-times: `python -m convnext_jax.export --checkpoint WORKDIR OUTPUT`.

The output is a folder with the model, `model.json`, which says how images are fed to it and what
its classes are, and a short script that runs it.
"""

from convnext_jax import interrupts

if __name__ == "__main__":  # before the imports, which take seconds
    interrupts.listen()

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging

from convnext_jax import __version__
from convnext_jax.constants import PARAMETERS
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.export.fold import fold
from convnext_jax.export.folder import require_free, run_stablehlo, today, write_folder
from convnext_jax.export.stablehlo import PLATFORMS, stablehlo
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelSpec
from convnext_jax.weights.find import NAMES, add_choices, find

FORMATS = ("stablehlo",)
DTYPES = ("float32", "bfloat16")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convnext_jax.export", description="Write a model for other run-times."
    )
    parser.add_argument("output", help="the folder to write, new or empty")
    parser.add_argument("--checkpoint", required=True, help=NAMES)
    add_choices(parser)
    parser.add_argument(
        "--formats",
        default="stablehlo",
        type=lambda text: text.split(","),
        help="stablehlo: for cpu, cuda and tpu, runs with JAX alone (default)",
    )
    parser.add_argument(
        "--fold",
        action="store_true",
        help="move what is linear into the kernels, and the normalisation of images into the stem"
        " where it can be: the same function, images as pixels in 0..255",
    )
    parser.add_argument("--size", type=int, help="side of images, pixels (default: the model's)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of computation (default: float32); logits are float32"
    )
    return parser.parse_args(arguments)


def export(arguments: argparse.Namespace) -> str:
    """Does what the arguments ask for; returns what to tell the user.

    Raises:
      InputError: the arguments cannot be used.
      RunError: the folder cannot be written.
    """
    for name in arguments.formats:
        if name not in FORMATS:
            raise InputError(f"`--formats` (={name}) must be of {', '.join(FORMATS)}")
    folder = Path(arguments.output)
    require_free(folder)
    weights = find(arguments.checkpoint, step=arguments.step, ema=arguments.ema)
    found = weights.description
    size = found.preprocessing.input_size if arguments.size is None else arguments.size
    if size < 1:
        raise InputError(f"`--size` (={size}) must be positive")
    feeding = dataclasses.replace(found.preprocessing, input_size=size)
    dtype = arguments.dtype or "float32"
    spec = ModelSpec(
        found.spec.name, found.spec.num_classes, {**found.spec.overrides, "dtype": dtype}
    )
    params, batch_stats = weights.on_host(), weights.batch_stats_on_host()
    pixels = False
    if arguments.fold:
        params, pixels = fold(params, feeding)
    program, shape = stablehlo(spec, params, batch_stats, size)
    segments = get_variant(spec.name).task == "segmentation"
    described = dataclasses.replace(found, spec=spec, preprocessing=feeding).to_json()
    channels = spec.overrides.get("in_channels", 3)
    described |= {
        "task": get_variant(spec.name).task,
        "input": {
            "shape": ["n", size, size, channels],
            "dtype": "float32",
            "pixels": "0..255" if pixels else "normalised",
        },
        "output": {"shape": list(shape), "dtype": "float32"},
        "dtype": dtype,
        "folded": arguments.fold,
        "licence": weights.licence,
        "source": str(weights),
        "parameters": weights.parameters,
        "platforms": list(PLATFORMS),
        "versions": {"convnext_jax": __version__, "jax": jax.__version__},
        "date": today(),
    }
    files = {
        "model.stablehlo": program,
        "model.json": described,
        "run_stablehlo.py": run_stablehlo(spec.num_classes, segments),
    }
    write_folder(folder, files)
    return (
        f"{folder}: {spec.name}, {weights} ({PARAMETERS[weights.parameters]}), {size} pixels,"
        f" {described['input']['pixels']}; model.stablehlo, {len(program) / 2**20:.1f} MiB, for"
        f" {', '.join(PLATFORMS)}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        print(export(parsed))
    sys.exit(0)


if __name__ == "__main__":
    main()
