"""Evaluates a checkpoint: `python -m convnext_jax.evaluate --checkpoint WORKDIR [--ema]`.

A checkpoint says itself what model it is and how its images are prepared; no config file is needed.
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

import numpy as np
from absl import logging

from convnext_jax import builders, processes, sharding
from convnext_jax.checkpointing.manager import find_step, read_description
from convnext_jax.config import from_dict
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.models.spec import ModelDescription


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convnext_jax.evaluate", description="Evaluate a checkpoint."
    )
    parser.add_argument("--checkpoint", required=True, help="workdir of a run, or one step in it")
    parser.add_argument("--step", default="latest", help="latest (default), best, or a number")
    parser.add_argument("--ema", action="store_true", help="the moving average of the parameters")
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


def evaluate(arguments: argparse.Namespace) -> dict[str, float | str | int]:
    """Evaluates what the arguments name; returns what is printed.

    Raises:
      InputError: the checkpoint or the dataset is not there, or they do not fit each other.
    """
    item = "ema" if arguments.ema else "params"
    place = find_step(arguments.checkpoint, arguments.step, f"eval_{item}_top1")
    described = read_description(*place)
    model = ModelDescription.from_json(described)
    # A run says what it evaluated on; converted weights do not.
    values = described.get("config", {"data": {"name": arguments.dataset, "global_batch": 64}})
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
    if source.num_classes != model.spec.num_classes:
        raise InputError(
            f"dataset `{data.name}` has {source.num_classes} classes, but the checkpoint's"
            f" model has {model.spec.num_classes}"
        )
    allow_open_files([source], builders.workers_of(data))
    evaluator = builders.build_evaluator(
        model,
        source,
        data,
        mesh,
        confusion=bool(arguments.confusion),
        option="--on_error",
        batch_option="--batch_size",
    )
    params = builders.restore_params(model.spec, place, item, mesh)
    results = evaluator({item: params})[item]
    evaluator.close()
    for reason in evaluator.skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    confusion = results.pop("confusion", None)
    if confusion is not None and processes.is_first():
        write_confusion(Path(arguments.confusion), confusion, source.class_names)
    return {
        "model": model.spec.name,
        "step": place[1],
        "parameters": item,
        "dataset": data.name,
        "split": data.eval_split,
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
            print(
                "{model}, step {step} ({parameters}), on {num_examples} images{left_out} of"
                " {dataset} `{split}`: top-1 {top1:.3%}, top-5 {top5:.3%}, loss {loss:.4f}".format(
                    left_out=left_out, **results
                )
            )


if __name__ == "__main__":
    main()
