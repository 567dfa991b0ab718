"""A run as one page to look at: `python -m convnext_jax.report WORKDIR`.

Curves, results, and of a classifier what it takes for what and its surest mistakes, in one file
that needs no network. Several workdirs give a page of their runs side by side.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import argparse
import functools
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from convnext_jax import starting
from convnext_jax.arguments import Parser
from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.config import from_dict
from convnext_jax.constants import REPORT_FILE
from convnext_jax.errors import InputError, RunError, exit_in_one_sentence
from convnext_jax.models.registry import get_variant
from convnext_jax.report import looks, run
from convnext_jax.weights.find import Weights, add_choices, find
from convnext_jax.wings import wing_of


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m convnext_jax.report", description="Write a page on a run, or on several."
    )
    parser.add_argument("workdirs", nargs="+", help="of the runs")
    parser.add_argument(
        "--output",
        help=f"the file to write (default: {REPORT_FILE} in the workdir; of several runs, here)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=5000,
        help="of the evaluation split, to look at for mistakes (default: 5000); 0: none",
    )
    parser.add_argument("--data_dir", help="TFDS data directory (default: the run's)")
    add_choices(parser)
    return parser.parse_args(arguments)


def report(arguments: argparse.Namespace) -> str:
    """Does what the arguments ask for; returns what to tell the user.

    Raises:
      InputError: the arguments cannot be used.
      RunError: the file cannot be written.
    """
    if arguments.examples < 0:
        raise InputError(f"`--examples` (={arguments.examples}) must not be negative")
    workdirs = [Path(workdir) for workdir in arguments.workdirs]
    for workdir in workdirs:
        run.read(workdir)  # before anything takes time
    several = len(workdirs) > 1
    file = Path(arguments.output or (REPORT_FILE if several else workdirs[0] / REPORT_FILE))
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK) or file.is_dir():
        raise InputError(f"`--output` (={file}) must be a file that can be written")
    if several:
        for flag, given in (
            ("--step", arguments.step != "latest"),
            ("--ema", arguments.ema is not None),
            ("--data_dir", arguments.data_dir is not None),
        ):
            if given:
                raise InputError(f"`{flag}` must not be given with several runs: see --help")
    spec = look = None
    if not several:
        elsewhere = run.read(workdirs[0]).config.get("checkpoint", {}).get("dir")
        directory = epath.Path(elsewhere or workdirs[0] / "checkpoints")
        if completed_steps(directory):
            weights = find(str(directory), step=arguments.step, ema=arguments.ema)
            spec = weights.description.spec
            look = functools.partial(_look, weights, arguments)
    try:
        problems = run.write(workdirs, file, look, spec)
    except OSError as error:
        raise RunError(f"writing {file} failed: {error}") from error
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    return f"{file}: {', '.join(map(str, workdirs))}, {file.stat().st_size / 2**20:.1f} MiB"


def _look(weights: Weights, arguments: argparse.Namespace) -> list[str]:
    """The sections on what the model does on examples; opens them."""
    model, values = weights.description, weights.config
    task = get_variant(model.spec.name).task
    if not arguments.examples or values is None or task != "classification":
        return []
    if arguments.data_dir is not None:
        values["data"]["dir"] = arguments.data_dir
    config = from_dict(values)
    source = wing_of(model.spec.name).open(config, config.data.eval_split)
    source, _ = starting.with_labels_of(model, source, str(weights))

    def arrays() -> tuple[Any, Any]:
        return weights.read(), weights.batch_stats()

    return looks.look(model, arrays, source, arguments.examples)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    warnings.filterwarnings("ignore", module="PIL")
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        print(report(parsed))
    sys.exit(0)


if __name__ == "__main__":
    main()
