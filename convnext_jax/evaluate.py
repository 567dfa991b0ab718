"""Evaluates weights: `python -m convnext_jax.evaluate --checkpoint WORKDIR`.

A checkpoint says itself what model it is and how its images are prepared; no config file is needed.
What else can be evaluated, and which of its parameters are, says `weights/find.py`.
"""

from convnext_jax import interrupts

if __name__ == "__main__":  # before the imports, which take seconds
    interrupts.listen()

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from convnext_jax import builders, processes, sharding, starting
from convnext_jax.classification.task import evaluation
from convnext_jax.config import from_dict
from convnext_jax.constants import PARAMETERS
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.weights.find import NAMES, add_choices, find


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convnext_jax.evaluate", description="Evaluate a checkpoint."
    )
    parser.add_argument("--checkpoint", required=True, help=NAMES)
    add_choices(parser)
    parser.add_argument("--dataset", help="TFDS name (default: what the run evaluated on)")
    parser.add_argument("--data_dir", help="TFDS data directory (default: the run's)")
    parser.add_argument("--split", help="default: what the run evaluated on")
    parser.add_argument("--batch_size", type=int, help="over all devices (default: the run's)")
    parser.add_argument(
        "--on_error",
        choices=("stop", "skip"),
        help="at an image that cannot be read (default: as the run); skip: leave it out",
    )
    parser.add_argument(
        "--confusion", metavar="FILE.csv", help="write per-class accuracy and the confusion matrix"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args(arguments)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluates what the arguments name; returns what is printed.

    Raises:
      InputError: the checkpoint or the dataset is not there, or they do not fit each other.
    """
    weights = find(arguments.checkpoint, step=arguments.step, ema=arguments.ema)
    starting.check_same(f"`--checkpoint` (={arguments.checkpoint})", weights)
    model = weights.description
    # A run says what it evaluated on; converted weights do not.
    values = weights.config or {"data": {"name": arguments.dataset, "global_batch": 64}}
    given = {
        "name": arguments.dataset,
        "dir": arguments.data_dir,
        "eval_split": arguments.split,
        "eval_batch": arguments.batch_size,
        "on_error": arguments.on_error,
    }
    values["data"] |= {key: value for key, value in given.items() if value is not None}
    if values["data"]["name"] is None:
        raise InputError(f"`--dataset` must be given: {arguments.checkpoint} comes from no run")
    data = from_dict(values).data
    mesh = sharding.create_mesh()
    source = open_source(data.name, data.eval_split, data.dir, exif=model.preprocessing.exif)
    for note in source.notes if processes.is_first() else ():
        print(note, file=sys.stderr)
    source, remarks = starting.with_labels_of(model, source, str(weights))
    allow_open_files([source], builders.workers_of(data))
    evaluator = builders.build_evaluator(
        evaluation(model, confusion=bool(arguments.confusion)),
        source,
        data,
        mesh,
        option="--on_error",
        batch_option="--batch_size",
    )
    results = evaluator({weights.parameters: (weights.read(mesh), {})})[weights.parameters]
    evaluator.close()
    for reason in evaluator.skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    confusion = results.pop("confusion", None)
    if confusion is not None and processes.is_first():
        write_confusion(Path(arguments.confusion), confusion, source.class_names)
    return {
        "model": model.spec.name,
        "step": weights.step,
        "weights": str(weights),
        "parameters": weights.parameters,
        "dataset": data.name,
        "split": data.eval_split,
        "notes": remarks,
    } | results


def write_confusion(path: Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes a CSV with a row for each class: its name, examples, accuracy, and what it was taken
    for.

    Args:
      path: written under a temporary name first.
      counts: [classes, classes], by label and by prediction.
      class_names: in the order of labels.

    Raises:
      InputError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "examples", "accuracy", *class_names])
            for label, row in enumerate(counts.tolist()):
                examples = sum(row)
                accuracy = f"{row[label] / examples:.6f}" if examples else ""
                writer.writerow([class_names[label], examples, accuracy, *row])
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"`--confusion` (={path}) cannot be written: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    parsed = parse_arguments(arguments)
    with exit_in_one_sentence():
        processes.join()
        with processes.ending_together():
            results = evaluate(parsed)
        if not processes.is_first():
            return
        if parsed.json:
            print(json.dumps(results))
        else:
            left_out = f" ({results['num_skipped']} skipped)" if results["num_skipped"] else ""
            which = PARAMETERS[results["parameters"]]
            print(
                "{model}, {weights} ({which}), on {num_examples} images{left_out} of {dataset}"
                " `{split}`: top-1 {top1:.3%}, top-5 {top5:.3%}, loss {loss:.4f}".format(
                    which=which, left_out=left_out, **results
                )
            )
            for note in results["notes"]:
                print(f"note: {note}")


if __name__ == "__main__":
    main()
