"""Writes a model for other run-times: `python -m convnext_jax.export --checkpoint WORKDIR OUTPUT`.

The output is a folder with the model, `model.json`, which says how images are fed to it and what
its classes are, and a short script that runs it.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin("predict")

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging

from convnext_jax import __version__
from convnext_jax.arguments import Parser
from convnext_jax.constants import PARAMETERS
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.export.fold import fold
from convnext_jax.export.folder import require_free, script, today, write_folder
from convnext_jax.export.graph import OPSET
from convnext_jax.export.onnx import onnx_files
from convnext_jax.export.runtimes import require_packages
from convnext_jax.export.stablehlo import PLATFORMS, stablehlo
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelSpec
from convnext_jax.weights.find import NAMES, add_choices, find

FORMATS = ("stablehlo", "onnx")
DTYPES = ("float32", "bfloat16", "float16")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m convnext_jax.export", description="Write a model for other run-times."
    )
    parser.add_argument("output", help="the folder to write, new or empty")
    parser.add_argument("--checkpoint", required=True, help=NAMES)
    add_choices(parser)
    parser.add_argument(
        "--formats",
        default="stablehlo",
        type=lambda text: text.split(","),
        help="stablehlo (default): for cpu, cuda and tpu, runs with JAX alone; onnx; or both,"
        " separated by a comma",
    )
    parser.add_argument(
        "--fold",
        action="store_true",
        help="move what is linear into the kernels, and the normalisation of images into the stem"
        " where it can be: the same function, images as pixels in 0..255",
    )
    parser.add_argument("--size", type=int, help="side of images, pixels (default: the model's)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of computation (default: float32); images and logits are float32",
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
    if "onnx" in arguments.formats and arguments.dtype == "bfloat16":
        raise InputError("`--dtype` (=bfloat16) must be float32 or float16 for ONNX run-times")
    require_packages(arguments.formats)
    if "://" in arguments.output:
        raise InputError(f"`output` (={arguments.output}) must be a folder on a disk")
    folder = Path(arguments.output).expanduser().resolve()
    weights = find(arguments.checkpoint, step=arguments.step, ema=arguments.ema)
    found = weights.description
    if get_variant(found.spec.name).task == "detection":
        raise InputError(f"{weights} detects objects: such models cannot be exported")
    if get_variant(found.spec.name).architecture == "roadmap":
        for flag, given in (
            ("--fold", arguments.fold),
            ("--formats onnx", "onnx" in arguments.formats),
        ):
            if given:
                raise InputError(
                    f"`{flag}` must not be given for {found.spec.name}: StableHLO can be written"
                )
    size = found.preprocessing.input_size if arguments.size is None else arguments.size
    if size < 1:
        raise InputError(f"`--size` (={size}) must be positive")
    require_free(folder)
    feeding = dataclasses.replace(found.preprocessing, input_size=size)
    spec = ModelSpec(
        found.spec.name,
        found.spec.num_classes,
        {**found.spec.overrides, "dtype": arguments.dtype},
    )
    params, batch_stats = weights.on_host(), weights.batch_stats_on_host()
    pixels = False
    if arguments.fold:
        params, pixels = fold(params, feeding)
    channels = spec.overrides.get("in_channels", 3)
    task = get_variant(spec.name).task
    formats, files = {}, {}
    if "stablehlo" in arguments.formats:
        program, shape = stablehlo(spec, params, batch_stats, size)
        files["model.stablehlo"] = program
        formats["stablehlo"] = {
            "input": ["n", size, size, channels],
            "output": list(shape),
            "platforms": list(PLATFORMS),
            "version": jax.__version__,
        }
    if "onnx" in arguments.formats:
        written, shape = onnx_files(spec, params, batch_stats, size, __version__)
        files |= written
        formats["onnx"] = {
            "input": ["n", channels, size, size],
            "output": list(shape),
            "opset": OPSET,
        }
    described = dataclasses.replace(found, spec=spec, preprocessing=feeding).to_json()
    described |= {
        "task": task,
        "input": {
            "size": size,
            "dtype": "float32",
            "pixels": "0..255" if pixels else "normalised",
        },
        "formats": formats,
        "dtype": arguments.dtype,
        "folded": arguments.fold,
        "licence": weights.licence,
        "source": str(weights),
        "parameters": weights.parameters,
        "version": __version__,
        "date": today(),
    }
    sizes = [f"{name}, {len(content) / 2**20:.1f} MiB" for name, content in files.items()]
    for name in formats:
        files[f"run_{name}.py"] = script(name, spec.num_classes, task == "segmentation")
    # Last: who finds it finds all.
    write_folder(folder, files | {"model.json": described})
    return (
        f"{folder}: {spec.name}, {weights} ({PARAMETERS[weights.parameters]}), {size} pixels,"
        f" {described['input']['pixels']}; {'; '.join(sizes)}"
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
