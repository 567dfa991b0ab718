"""Checks data before a run: `python -m convnext_jax.check --config FILE --config.data.dir=ROOT`.

Reads every image of the two splits that a config names, as its run would, and says all that is
wrong at once: images that cannot be read, classes without examples or not the same in both splits,
images that are in both or have two classes. Exit status: 0 a run can use the data; 1 it would stop;
2 the input cannot be used.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from convnext_jax import processes
from convnext_jax.config import Config
from convnext_jax.config_files import ConfigFileParser, load_config
from convnext_jax.data.checking import SplitFacts, read_all, same_pixels
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.data.sources import check_same_classes, require_one_label
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.progress import progress_bar
from convnext_jax.wings import steps_of, wing_of

# Classes, or pairs of images, that a line names.
_NAMED = 5


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line, as `ConfigFileParser.parse_with_overrides`."""
    parser = ConfigFileParser(
        prog="python -m convnext_jax.check",
        description="Read all of a run's data, and say what is wrong in it.",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_with_overrides(arguments)


def check(config: Config) -> dict[str, Any]:
    """Reads both splits of a run.

    Returns:
      `splits`, what each holds; `problems`, sentences on what a run would stop at; `warnings`, on
      what it would not notice.

    Raises:
      InputError: a split cannot be opened.
    """
    data = config.data
    wing = wing_of(config.model.name)
    sources = [
        wing.open(config, split, training=training, look=False)
        for split, training in ((data.train_split, True), (data.eval_split, False))
    ]
    for source in sources:
        require_one_label(source)
    problems, remarks = list[str](), list[str]()
    try:
        check_same_classes(*sources)
    except InputError as error:
        problems.append(str(error))
    try:
        steps_of(config, len(sources[0]))
    except InputError as error:
        problems.append(str(error))
    workers = processes.usable_cores() if data.workers == -1 else data.workers
    allow_open_files(sources, workers)
    found = []
    with progress_bar("checking", sum(map(len, sources)), "images") as bar:
        for source in sources:
            facts = read_all(source, workers=workers, threads=data.threads, advance=bar.update)
            found.append(facts)
    for facts in found:
        # As a run of one process would.
        stops = data.on_error == "stop" or not len(facts.indices)
        (problems if stops else remarks).extend(facts.errors.values())
        if not stops and len(facts.errors) > data.max_skipped:
            problems.append(
                f"{facts.name} has {len(facts.errors)} images that cannot be read, and a process"
                f" may skip `data.max_skipped` (={data.max_skipped})"
            )
    training, held_out = found
    names = [getattr(source, "path_of", "example {}".format) for source in sources]
    empty = [
        n for n, count in zip(training.class_names, training.examples, strict=True) if not count
    ]
    if empty:
        remarks.append(
            f"{training.name} has no image of {_listed(empty, len(training.class_names))}"
        )
    for facts, name in zip(found, names, strict=True):
        pairs = same_pixels(facts)
        if pairs:
            remarks.append(f"{facts.name} has {_times(pairs)} twice: {_pairs(pairs, name, name)}")
        other = _of_two_classes(pairs, facts, facts)
        if other:
            remarks.append(
                f"{facts.name} has {_times(other)} with two classes: {_pairs(other, name, name)}"
            )
    both = same_pixels(training, held_out)
    if both:
        remarks.append(
            f"{training.name} also has {_times(both)} of {held_out.name}, whose score says less for"
            f" it: {_pairs(both, *names)}"
        )
    other = _of_two_classes(both, training, held_out)
    if other and training.class_names == held_out.class_names:
        remarks.append(f"{_times(other)} of both splits with two classes: {_pairs(other, *names)}")
    return {
        "splits": [
            {"name": name} | _described(facts)
            for name, facts in zip((data.train_split, data.eval_split), found, strict=True)
        ],
        "problems": problems,
        "warnings": remarks,
    }


def _described(facts: SplitFacts) -> dict[str, Any]:
    found: dict[str, Any] = {
        "images": len(facts.indices) + len(facts.errors),
        "unreadable": len(facts.errors),
        "classes": dict(zip(facts.class_names, facts.examples.tolist(), strict=True)),
        "notes": list(facts.notes),
    }
    if len(facts.pixels):
        shares = facts.pixels / max(facts.pixels.sum(), 1)
        found["pixels"] = dict(zip(facts.class_names, shares.round(6).tolist(), strict=True))
    if len(facts.sizes):
        areas = np.argsort(facts.sizes.prod(1), kind="stable")
        for key, place in (("smallest", 0), ("median", len(areas) // 2), ("largest", -1)):
            found[key] = facts.sizes[areas[place]].tolist()
    return found


def _listed(names: Sequence[str], of: int) -> str:
    named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names)} of {of} classes: {named}"


def _times(pairs: Sequence[tuple[int, int]]) -> str:
    return f"{len(pairs)} image{'s' if len(pairs) > 1 else ''}"


def _of_two_classes(
    pairs: Sequence[tuple[int, int]], one: SplitFacts, other: SplitFacts
) -> list[tuple[int, int]]:
    """Those of `same_pixels`' pairs that have different labels."""
    first, second = (
        dict(zip(facts.indices.tolist(), facts.labels.tolist(), strict=True))
        for facts in (one, other)
    )
    return [(a, b) for a, b in pairs if first[a] != second[b]]


def _pairs(
    pairs: Sequence[tuple[int, int]],
    first: Callable[[int], str],
    second: Callable[[int], str],
) -> str:
    named = [f"{first(a)} and {second(b)}" for a, b in pairs[:_NAMED]]
    return "; ".join(named) + ("; ..." if len(pairs) > _NAMED else "")


def _printed(results: dict[str, Any]) -> str:
    lines = []
    for split in results["splits"]:
        counts = list(split["classes"].values())
        lines.append(
            f"`{split['name']}`: {split['images']:,} images, {split['unreadable']} of them cannot"
            f" be read; {len(counts):,} classes with {min(counts):,} to {max(counts):,} images each"
        )
        if "median" in split:
            sizes = (
                f"{key} {split[key][1]} x {split[key][0]}"
                for key in ("smallest", "median", "largest")
            )
            lines.append(f"  sizes, width x height: {', '.join(sizes)}")
        lines += [f"  {note}" for note in split["notes"]]
    lines += [f"warning: {remark}" for remark in results["warnings"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    # Names of files may be no text.
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    warnings.filterwarnings("ignore", module="PIL")  # of images that can be used all the same
    with exit_in_one_sentence():
        parsed, overrides = parse_arguments(arguments)
        results = check(load_config(parsed.config, overrides))
    print(json.dumps(results) if parsed.json else _printed(results))
    for problem in results["problems"]:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if results["problems"] else 0)


if __name__ == "__main__":
    main()
