"""Evaluates weights: `python -m convnext_jax.evaluate --checkpoint WORKDIR`.

A checkpoint says itself what model it is and how its images are prepared; no config file is needed.
What else can be evaluated, and which of its parameters are, says `weights/find.py`.
"""

from convnext_jax import errors, interrupts

if __name__ == "__main__":  # before the imports, which take seconds
    interrupts.listen()
    errors.explain_missing_packages()

import argparse
import csv
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from convnext_jax import builders, processes, sharding, starting
from convnext_jax.arguments import Parser
from convnext_jax.classification.metrics import class_scores
from convnext_jax.config import from_dict
from convnext_jax.constants import PARAMETERS
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.progress import progress_bar
from convnext_jax.training.evaluator import results_of
from convnext_jax.weights.find import NAMES, add_choices, find
from convnext_jax.wings import wing_of

# Flags that only some tasks have; a wing lists its own.
_OPTIONS = ("confusion", "per_class", "multi_scale")
_VALUES = ("first_label", "ignored")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(prog="python -m convnext_jax.evaluate", description="Evaluate a checkpoint.")
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
        "--confusion",
        metavar="FILE.csv",
        help="of a classifier: write each class's accuracy, precision and F1, and the confusion"
        " matrix; also gives their means over classes",
    )
    parser.add_argument(
        "--per_class",
        metavar="FILE.csv",
        help="of a model that segments: write each class's IoU, accuracy and pixels",
    )
    parser.add_argument(
        "--multi_scale",
        action="store_true",
        help="of a model that segments: whole images in six sizes, also mirrored, as in the paper's"
        " main table, instead of windows",
    )
    parser.add_argument(
        "--first_label",
        type=int,
        metavar="VALUE",
        help="of a model that segments: value of the first class in the annotations",
    )
    parser.add_argument(
        "--ignored",
        type=int,
        metavar="VALUE",
        help="of a model that segments: value of pixels that are of no class",
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
    # A run says what it evaluated on.
    wing = wing_of(model.spec.name)
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    numbers = {
        name: getattr(arguments, name) for name in _VALUES if getattr(arguments, name) is not None
    }
    for name in [*(name for name in options if options[name]), *numbers]:
        if name not in wing.options | wing.values:
            raise InputError(f"`--{name}` must not be given for {model.spec.name}: see --help")
    # Converted weights say nothing of a dataset.
    values = weights.config or {"data": {"name": arguments.dataset, "global_batch": 64}}
    given = {
        "name": arguments.dataset,
        "dir": arguments.data_dir,
        "eval_split": arguments.split,
        "eval_batch": arguments.batch_size,
        "on_error": arguments.on_error,
    }
    # What a run said of its own dataset's annotations does not hold for another.
    inherited = arguments.dataset in (None, values["data"]["name"])
    labels = values.get("segmentation", {}) if wing.values else {}
    kept = {key: value for key, value in labels.items() if inherited or key not in wing.values}
    values["segmentation"] = kept | numbers
    values["data"] |= {key: value for key, value in given.items() if value is not None}
    if values["data"]["name"] is None:
        raise InputError(f"`--dataset` must be given: {arguments.checkpoint} comes from no run")
    values["data"]["exif"] = model.preprocessing.exif
    config = from_dict(values)
    data = config.data
    mesh = sharding.create_mesh()
    source = wing.open(config, data.eval_split)
    for note in source.notes if processes.is_first() else ():
        print(note, file=sys.stderr)
    source, remarks = starting.with_labels_of(model, source, str(weights))
    allow_open_files([source], builders.workers_of(data))
    if arguments.multi_scale and arguments.batch_size is None:
        # An image is twelve of them.
        data = dataclasses.replace(data, eval_batch=mesh.size)
    chosen = {name: bool(options[name]) for name in wing.options}
    parts = wing.parts(model, source, skip=data.on_error == "skip", **chosen)
    variables = {"": (weights.read(mesh), weights.batch_stats(mesh))}
    totals: dict[str, Any] = {}
    total = sum(len(part) for part, _ in parts)
    with progress_bar("evaluating", total, "images", shown=processes.is_first()) as bar:
        for part, evaluation in parts:
            evaluator = builders.build_evaluator(
                evaluation, part, data, mesh, option="--on_error", batch_option="--batch_size"
            )
            before = bar.n
            found = evaluator.totals(variables, functools.partial(bar.update, evaluator.batch))
            for name, value in found[""].items():
                totals[name] = totals.get(name, 0) + value
            evaluator.close()
            bar.update(before + len(part) - bar.n)  # the last batch is not full
            for reason in evaluator.skipped.values():
                bar.write(f"skipped: {reason}", file=sys.stderr)
    totals["skipped"] = len(source) - int(totals["count"])
    results = results_of(parts[0][1], totals)
    confusion = results.pop("confusion", None)
    per_class = {
        name: results.pop(name) for name in ("iou", "accuracy", "pixels") if name in results
    }
    if confusion is not None:
        scores = class_scores(confusion.diagonal(), confusion.sum(1), confusion.sum(0))
        # Over the classes of which something can be said, as scikit-learn's macro averages.
        results["mean_class_accuracy"] = float(np.nanmean(scores["recall"]))
        results["macro_f1"] = float(np.nanmean(scores["f1"]))
    if processes.is_first():
        if confusion is not None:
            write_confusion(Path(arguments.confusion), confusion, source.class_names)
        if per_class:
            write_classes(Path(arguments.per_class), per_class, source.class_names)
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
    """Writes a CSV with a row for each class: its name, its scores, and what it was taken for.

    Args:
      path: written under a temporary name first.
      counts: [classes, classes], by label and by prediction.
      class_names: in the order of labels.

    Raises:
      InputError: the file cannot be written.
    """
    scores = class_scores(counts.diagonal(), counts.sum(1), counts.sum(0))
    header = ["class", "examples", "accuracy", "precision", "f1"]
    rows: list[Sequence[Any]] = [[*header, *class_names]]
    for label, row in enumerate(counts.tolist()):
        numbers = (scores[key][label] for key in ("recall", "precision", "f1"))
        rows.append(
            [class_names[label], int(scores["examples"][label]), *map(_spoken, numbers), *row]
        )
    _write_csv("--confusion", path, rows)


def write_classes(path: Path, scores: Mapping[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Writes a CSV with a row for each class: its name, pixels, IoU and accuracy.

    Args:
      path: written under a temporary name first.
      scores: `pixels`, `iou` and `accuracy`, [classes] each; of a class that nothing says anything
        of, nan, which is left empty.
      class_names: in the order of labels.

    Raises:
      InputError: the file cannot be written.
    """
    rows: list[Sequence[Any]] = [["class", "pixels", "iou", "accuracy"]]
    for label, name in enumerate(class_names):
        numbers = (scores[key][label] for key in ("iou", "accuracy"))
        rows.append([name, int(scores["pixels"][label]), *map(_spoken, numbers)])
    _write_csv("--per_class", path, rows)


def _spoken(number: float) -> str:
    """A fraction, or nothing where it is not known."""
    return "" if np.isnan(number) else f"{number:.6f}"


def _write_csv(option: str, path: Path, rows: Sequence[Sequence[Any]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"`{option}` (={path}) cannot be written: {error}") from error


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
            words = wing_of(results["model"]).words(results)
            if "macro_f1" in results:
                words += (
                    ", means over classes: accuracy {mean_class_accuracy:.3%}, F1 {macro_f1:.3%}"
                )
                words = words.format_map(results)
            print(
                "{model}, {weights} ({which}), on {num_examples} images{left_out} of {dataset}"
                " `{split}`: {words}".format(which=which, left_out=left_out, words=words, **results)
            )
            for note in results["notes"]:
                print(f"note: {note}")


if __name__ == "__main__":
    main()
