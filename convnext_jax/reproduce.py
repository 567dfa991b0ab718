"""Measures the papers' tables again: `python -m convnext_jax.reproduce TABLE --workdir DIR`.

    python -m convnext_jax.reproduce --list
    python -m convnext_jax.reproduce imagenet1k --data_dir=/data/tfds --workdir runs/tables

Published weights are evaluated on the test sets that are there, and their numbers stand beside the
published ones in `DIR/TABLE.md`. What was measured once is not measured again.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from convnext_jax import processes
from convnext_jax.arguments import Parser
from convnext_jax.errors import InputError, did_you_mean, exit_in_one_sentence
from convnext_jax.reproducing.page import lines
from convnext_jax.reproducing.run import AUTHORS, HUB, reproduce
from convnext_jax.reproducing.tables import TABLES

# Some rows have no result; the page says why.
_INCOMPLETE = 1


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m convnext_jax.reproduce",
        description="Measures the papers' tables again, with published weights.",
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--list", action="store_true", help="print the tables' rows, and leave")
    parser.add_argument("--data_dir", help="where the test sets are (default: TFDS's own)")
    parser.add_argument(
        "--weights",
        default=HUB,
        help=f"{HUB} (default): the Hugging Face Hub; {AUTHORS}: the authors' server; the beginning"
        " of an URL, or a folder, that has the authors' files",
    )
    parser.add_argument("--workdir", help="where results are kept and pages written")
    parser.add_argument(
        "--only",
        metavar="NAME,...",
        help="some rows, such as convnext_tiny, convnext_tiny.fb_in1k or"
        " convnext_tiny.fb_in1k/imagenet_a",
    )
    parser.add_argument("--batch_size", type=int, help="over all devices")
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        help="at an image that cannot be read; skip: leave it out, and say so",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="also test sets with other numbers of images than were released",
    )
    parser.add_argument("--again", action="store_true", help="measure also what is kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        for name in parsed.tables:
            if name not in TABLES:
                raise InputError(
                    f"table `{name}` must be one of {', '.join(TABLES)}{did_you_mean(name, TABLES)}"
                )
        tables = [TABLES[name] for name in parsed.tables or TABLES]
        if parsed.list:
            print("\n".join(line for table in tables for line in lines(table, parsed.weights)))
            return
        if not parsed.tables:
            raise InputError(f"a table must be given: {', '.join(TABLES)}; or `--list`")
        if parsed.workdir is None:
            raise InputError("`--workdir` must be given: results are kept there")
        if "://" in parsed.workdir:
            raise InputError(f"`--workdir` (={parsed.workdir}) must be a directory on a disk")
        workdir = Path(parsed.workdir).expanduser().absolute()
        processes.join()
        with processes.ending_together():
            complete = reproduce(
                tables,
                parsed.data_dir,
                parsed.weights,
                workdir,
                reading={"eval_batch": parsed.batch_size, "on_error": parsed.on_error},
                only=[name.strip() for name in parsed.only.split(",")] if parsed.only else (),
                partial=parsed.partial,
                again=parsed.again,
            )
        if processes.is_first():
            for table in tables:
                print(f"{workdir / table.name}.md")
        if not complete:
            sys.exit(_INCOMPLETE)


if __name__ == "__main__":
    main()
