"""Plans a run before paying: `python -m convnext_jax.plan --config FILE --topology v5e:16x16`.

Compiles the run's own training step for a machine that is not there and reports whether it fits,
what it exchanges between chips, the least time that its machine code can take, what the run costs,
and the largest batch a device that fits. A first answer comes from a program that is compiled in
haste, and each other as soon as it is known; `--quick` ends with the first.
Overrides are those of training, `--config.KEY=VALUE`. Exit status: 0 planned; 2 the input cannot be
used, or the compiler for the machine is not installed (of GPUs, state and operations are then still
given).
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

# The compiler needs no TPU; where there is one, this leaves it alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import logging

from convnext_jax.config import Config
from convnext_jax.config_files import ConfigFileParser, load_config
from convnext_jax.data.prepared import base_name
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.models.registry import get_variant
from convnext_jax.planning.compiling import Job, Variant, analyse, measure, search
from convnext_jax.planning.machines import (
    Machine,
    describe_devices,
    mesh_of,
    parse_machine,
    share_of_memory,
)
from convnext_jax.planning.table import answer, table
from convnext_jax.planning.whole_run import feeding
from convnext_jax.wings import steps_of, wing_of

# Classes and examples of the splits of datasets that may be planned for without having them.
DATASETS = {
    "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "imagenet22k": (21_841, {"train": 14_197_122}),
    "ade20k": (150, {"train": 20_210, "validation": 2_000}),
    "coco2017": (80, {"train": 117_266, "validation": 5_000}),
}
# Their bytes as prepared, which are those of the images, and their files.
PREPARED = {"imagenet2012": (144 * 10**9, 1024), "imagenet22k": (1310 * 10**9, 2048)}


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line, as `ConfigFileParser.parse_with_overrides`."""
    parser = ConfigFileParser(
        prog="python -m convnext_jax.plan",
        description="Compile a run's training step for a machine without having it.",
    )
    parser.add_argument(
        "--topology", required=True, help="v5e:16x16, v4:4x4x8, 2xv5e:16x16, gpu:8xH100, ..."
    )
    parser.add_argument(
        "--fsdp", type=int, help="only with this many chips along fsdp; 1: only replicated"
    )
    parser.add_argument(
        "--remat",
        action=argparse.BooleanOptionalAction,
        help="only with (without) recomputing activations; default: both",
    )
    parser.add_argument("--per_device_batch", type=int, help="images of a chip at once, at most")
    parser.add_argument(
        "--compilations",
        type=int,
        default=8,
        help="most programs to compile, minutes each; what the variants leave goes into finding"
        " the largest batch (default: 8)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the first answer, of the config as it is, from a program compiled in haste",
    )
    parser.add_argument(
        "--price", type=float, help="dollars for an hour of a chip, for the cost of the run"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, at the end, instead of a table"
    )
    return parser.parse_with_overrides(arguments)


def dataset_size(config: Config) -> tuple[int, int]:
    """Number of classes and of training examples: of the dataset if it is here, or the known ones.

    Raises:
      InputError: it is neither here nor known.
    """
    data = config.data
    try:
        source = wing_of(config.model.name).open(config, data.train_split, training=True)
    except InputError:
        if base_name(data.name) not in DATASETS:
            raise
    else:
        return source.num_classes, len(source)
    classes, splits = DATASETS[base_name(data.name)]
    return classes, split_size(data.train_split, splits)


def held_out_size(config: Config) -> int:
    """Examples of the evaluation split; raises InputError where that is neither here nor known."""
    data = config.data
    try:
        return len(wing_of(config.model.name).open(config, data.eval_split))
    except InputError:
        if base_name(data.name) not in DATASETS:
            raise
    return split_size(data.eval_split, DATASETS[base_name(data.name)][1], "data.eval_split")


def split_size(split: str, splits: dict[str, int], key: str = "data.train_split") -> int:
    """Number of examples of a split or a part of one, such as `train[:-50000]` or `train[10%:]`.

    Args:
      split: in TFDS's notation, without sums.
      splits: examples of each split.
      key: of the config, which chose it.

    Raises:
      InputError: it is written otherwise, or there is no such split.
    """
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if match is None or match[1] not in splits:
        raise InputError(
            f"`{key}` (={split}) must be {' or '.join(splits)}, or a range of one such"
            f" as `train[:90%]`"
        )
    size = splits[match[1]]
    ends = [
        None
        if text is None
        else round(size * int(text[:-1]) / 100)
        if text.endswith("%")
        else int(text)
        for text in match.groups()[1:]
    ]
    return len(range(size)[slice(*ends)])


def variants(machine: Machine, fsdp: int | None, remat: bool | None) -> list[Variant]:
    """What to compile: replicated and fsdp, without and with rematerialisation, as asked for.

    Where no size of fsdp is given, it is the largest power of two up to 16 that divides the chips:
    the state is then small beside the activations, and the gathers stay between near chips.
    """
    power = next(n for n in (16, 8, 4, 2, 1) if machine.size // machine.slices % n == 0)
    sizes = [1, power][: 1 + (power > 1)] if fsdp is None else [fsdp]
    again = [False, True] if remat is None else [remat]
    return [Variant(size, value) for size in sizes for value in again]


def plan(arguments: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Does what the command line asks for; returns what is printed.

    Raises:
      InputError: the config, the machine and the dataset do not fit each other.
    """
    machine = parse_machine(arguments.topology)
    share_of_memory(machine)  # before minutes of compiling, if it cannot be used
    if arguments.per_device_batch is not None:
        overrides = [*overrides, f"--config.data.per_device_batch={arguments.per_device_batch}"]
    if arguments.compilations < 1:
        raise InputError(f"`--compilations` (={arguments.compilations}) must be positive")
    if arguments.price is not None and not 0 < arguments.price < math.inf:
        raise InputError(f"`--price` (={arguments.price}) must be a positive number of dollars")
    config = load_config(arguments.config, overrides)
    classes, examples = dataset_size(config)
    remat = arguments.remat
    if remat is None and get_variant(config.model.name).norm == "batch_norm":
        remat = False  # what BatchNorm notes cannot be computed twice
    tried = variants(machine, arguments.fsdp, remat)
    for way in tried:
        mesh_of(machine, None, way.fsdp)  # refuses what cannot be before any is compiled
    own = Variant(config.mesh.fsdp, config.model.remat)
    tried.sort(key=lambda variant: variant != own)  # what the config asks for is answered first
    result: dict[str, Any] = {
        "config": arguments.config,
        "topology": machine.name,
        "chips": machine.size,
        "slices": machine.slices,
        "gpu": machine.is_gpu,
        "hbm": machine.chip.hbm,
        "model": config.model.name,
        "dtype": config.model.dtype,
        "num_classes": classes,
        "global_batch": config.data.global_batch,
        "steps": steps_of(config, examples).total,
        "price": arguments.price,
    }
    devices = _devices(machine)
    held_out = held_out_size(config)
    jobs = [Job(config, way, machine, devices, classes, examples, held_out) for way in tried]
    if devices is None:
        return result | {"variants": [analyse(job) for job in jobs]}
    jobs = jobs[: arguments.compilations]
    # Programs wait for the whole; those for GPUs compile in minutes anyway.
    if arguments.quick or not (arguments.json or machine.is_gpu):
        _progress(f"compiling {jobs[0].variant} for {machine.name} in haste, for a first answer")
        row = _priced(measure(jobs[0], quick=True), machine, arguments.price)
        _progress(f"first answer, of a slower program than the run's: {answer(row)}")
        if arguments.quick:
            return result | {"variants": [row]}
    rows = []
    for number, job in enumerate(jobs, 1):
        _progress(f"compiling {job.variant} for {machine.name} ({number} of {len(jobs)})")
        row = _priced(measure(job), machine, arguments.price)
        rows.append(row)
        _progress(answer(row))
    left = arguments.compilations - len(jobs)
    for job, row in zip(jobs, rows, strict=True):
        row["largest_per_device_batch"], left = search(job, row, left, _progress)
        prepared = PREPARED.get(base_name(config.data.name))
        if row["fits"] and prepared is not None:
            row["data"] = feeding(
                machine,
                get_variant(config.model.name).task,
                row["images_per_second"],
                *prepared,
                examples,
            )
    return result | {"variants": rows}


def _priced(row: dict[str, Any], machine: Machine, price: float | None) -> dict[str, Any]:
    """A row with what the run costs, if it fits and a price is given."""
    if price is None or not row["fits"]:
        return row
    return row | {"cost": row["hours"] * machine.size * price}


def _devices(machine: Machine) -> list[Any] | None:
    """What to compile for; None: GPUs whose compiler is not installed."""
    try:
        return describe_devices(machine)
    except InputError:
        if machine.is_gpu:
            return None
        raise


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    with exit_in_one_sentence():
        parsed, overrides = parse_arguments(arguments)
        result = plan(parsed, overrides)
        print(json.dumps(result) if parsed.json else table(result))
        if not any("fits" in row for row in result["variants"]):
            describe_devices(parse_machine(parsed.topology))  # says what is missing


if __name__ == "__main__":
    main()
