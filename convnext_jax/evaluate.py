"""Evaluates weights: `python -m convnext_jax.evaluate --checkpoint WORKDIR`.

A checkpoint says itself what model it is and how its images are prepared; no config file is needed.
What else can be evaluated, and which of its parameters are, says `weights/find.py`.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import argparse
import contextlib
import csv
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from convnext_jax import processes, sharding, starting
from convnext_jax.arguments import Parser
from convnext_jax.classification.metrics import class_scores
from convnext_jax.constants import PARAMETERS
from convnext_jax.data.folder import NAME as FOLDER
from convnext_jax.data.imagenet_subsets import SUBSETS
from convnext_jax.detection.records import write_results
from convnext_jax.errors import InputError, exit_in_one_sentence
from convnext_jax.progress import progress_bar
from convnext_jax.scoring.scorer import Scorer, config_for
from convnext_jax.scoring.suite import SUITES, run_suite, suite_lines
from convnext_jax.scoring.test_sets import is_whole
from convnext_jax.weights.find import NAMES, add_choices, find
from convnext_jax.wings import wing_of

# Flags that only some tasks have; a wing lists its own.
_OPTIONS = ("confusion", "per_class", "multi_scale", "output")
_VALUES = ("first_label", "ignored")
# Of these, files that are written.
_FILES = ("confusion", "per_class", "output")
# What they give of each class.
_PER_CLASS = ("pixels", "iou", "accuracy", "box_ap_by_class", "mask_ap_by_class")
# Flags that only classifiers have.
_OF_IMAGES = ("classes", "whole", "suite")
# Flags that only suites have.
_OF_SUITES = ("only", "results", "partial", "again")
# Flags that they have no use for.
_OF_ONE_DATASET = ("dataset", "split", "classes", "whole", "confusion")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(prog="python -m convnext_jax.evaluate", description="Evaluate a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help=NAMES)
    add_choices(parser)
    parser.add_argument("--dataset", help="TFDS name (default: what the run evaluated on)")
    parser.add_argument("--data_dir", help="TFDS data directory (default: the run's)")
    parser.add_argument(
        "--split", help="default: what the run evaluated on, or the one that a test set is known by"
    )
    parser.add_argument(
        "--classes",
        choices=sorted(SUBSETS),
        help="of a classifier: images and predictions of these of ImageNet-1K's classes alone",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="of a classifier: cut nothing off the images, as ImageNet-C's released ones want",
    )
    parser.add_argument(
        "--suite",
        choices=sorted(SUITES),
        help="several test sets below --data_dir: ImageNet-1K, -A, -R, -Sketch, -V2, -ReaL, -C and"
        " -C-bar",
    )
    parser.add_argument(
        "--only", metavar="SET,...", help=f"of the suite: some of {', '.join(SUITES['robustness'])}"
    )
    parser.add_argument(
        "--results",
        metavar="FILE.json",
        help="of the suite: what is kept of it, and not measured again (default: suite.json in the"
        " run's workdir, else in the current directory)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="of the suite: also sets with other numbers of images than were released",
    )
    parser.add_argument(
        "--again", action="store_true", help="of the suite: measure also what is kept"
    )
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
        help="of a model that segments: write each class's IoU, accuracy and pixels; of one that"
        " detects: each class's average precision of boxes and masks",
    )
    parser.add_argument(
        "--output",
        metavar="NAME.json",
        help="of a model that detects: write NAME.bbox.json and NAME.segm.json, as COCO's tools and"
        " server read them",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE.json",
        help="of a model that detects, for a folder: COCO's annotations (default: the run's)",
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
    mesh = sharding.create_mesh()
    scorer = Scorer(weights, mesh)
    wing = scorer.wing
    options = {name: bool(getattr(arguments, name)) for name in _OPTIONS}
    numbers = {
        name: getattr(arguments, name) for name in _VALUES if getattr(arguments, name) is not None
    }
    for name in [*(name for name in options if options[name]), *numbers]:
        if name not in wing.options | wing.values:
            raise InputError(
                f"`--{name}` must not be given for {scorer.model.spec.name}: see --help"
            )
    for name in _OF_IMAGES:
        if getattr(arguments, name) and not wing.of_images:
            raise InputError(f"`--{name}` is for classifiers, and {scorer.model.spec.name} is none")
    if arguments.annotations is not None and "output" not in wing.options:
        raise InputError(
            f"`--annotations` is for models that detect, and {scorer.model.spec.name} does not"
        )
    for name in _FILES:
        place = getattr(arguments, name)
        if place is None:
            continue
        path = Path(place).absolute()
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(f"`--{name}` (={place}) must be in a folder that can be written to")
        if path.is_dir() or path.name == ".json":
            raise InputError(f"`--{name}` (={place}) must be the name of a file")
    reading = {"eval_batch": arguments.batch_size, "on_error": arguments.on_error}
    if arguments.multi_scale and arguments.batch_size is None:
        reading["eval_batch"] = mesh.size  # an image is twelve of them
    if arguments.suite:
        if given := [name for name in _OF_ONE_DATASET if getattr(arguments, name)]:
            raise InputError(f"`--{given[0]}` must not be given with `--suite`")
        ran_on = (weights.config or {}).get("data", {})
        own = None if ran_on.get("name") == FOLDER else ran_on.get("dir")
        if arguments.results is not None and "://" in arguments.results:
            raise InputError(f"`--results` (={arguments.results}) must be a file on a disk")
        return run_suite(
            scorer,
            arguments.suite,
            arguments.data_dir or own,
            reading=reading,
            records=None if arguments.results is None else Path(arguments.results),
            only=arguments.only,
            partial=arguments.partial,
            again=arguments.again,
        )
    for name in _OF_SUITES:
        if getattr(arguments, name):
            raise InputError(f"`--{name}` is for `--suite` alone")
    config = config_for(
        weights,
        reading
        | {
            "name": arguments.dataset,
            "dir": arguments.data_dir,
            "eval_split": arguments.split,
            "eval_annotations": arguments.annotations,
        },
        numbers,
    )
    data = config.data
    opened = scorer.open(
        config, classes=arguments.classes, whole=arguments.whole or is_whole(data.name)
    )
    with progress_bar(
        "evaluating", len(opened.source), "images", shown=processes.is_first()
    ) as bar:
        results = scorer.score(
            opened,
            {name: options[name] for name in wing.options},
            bar.update,
            lambda line: bar.write(line, file=sys.stderr),
        )
    confusion = results.pop("confusion", None)
    per_class = {name: results.pop(name) for name in _PER_CLASS if name in results}
    detections = results.pop("detections", None)
    if confusion is not None:
        scores = class_scores(confusion.diagonal(), confusion.sum(1), confusion.sum(0))
        # Over the classes of which something can be said, as scikit-learn's macro averages.
        results["mean_class_accuracy"] = float(np.nanmean(scores["recall"]))
        results["macro_f1"] = float(np.nanmean(scores["f1"]))
    if processes.is_first():
        names = opened.source.class_names
        if confusion is not None:
            write_confusion(Path(arguments.confusion), confusion, names)
        if per_class:
            write_classes(Path(arguments.per_class), per_class, names)
        if detections is not None:
            write_results(Path(arguments.output.removesuffix(".json")), detections)
    return {
        "model": scorer.model.spec.name,
        "step": weights.step,
        "weights": str(weights),
        "parameters": weights.parameters,
        "dataset": data.name,
        "split": data.eval_split,
        "classes": arguments.classes,
        "whole": opened.whole,
        "notes": list(opened.remarks),
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


def write_classes(path: Path, scores: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Writes a CSV with a row for each class: its name, and what is known of it.

    Args:
      path: written under a temporary name first.
      scores: of `_PER_CLASS`; of each an array [classes], or numbers by name. Nan, of a class that
        nothing says anything of, is left empty.
      class_names: in the order of labels.

    Raises:
      InputError: the file cannot be written.
    """
    keys = [key for key in _PER_CLASS if key in scores]
    rows: list[Sequence[Any]] = [["class", *(key.removesuffix("_by_class") for key in keys)]]
    for label, name in enumerate(class_names):
        row: list[Any] = [name]
        for key in keys:
            found = scores[key]
            number = found.get(name, np.nan) if isinstance(found, Mapping) else found[label]
            row.append(int(number) if key == "pixels" else _spoken(number))
        rows.append(row)
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
        with contextlib.suppress(OSError):
            temporary.unlink()
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
        elif parsed.suite:
            print("\n".join(suite_lines(results)))
        else:
            left_out = f" ({results['num_skipped']} skipped)" if results["num_skipped"] else ""
            if results.get("num_uncounted"):
                left_out += f" ({results['num_uncounted']} more do not count)"
            of = f", classes of {results['classes']}" if results["classes"] else ""
            of += ", whole images" if results["whole"] else ""
            which = PARAMETERS[results["parameters"]]
            words = wing_of(results["model"]).words(results)
            if "macro_f1" in results:
                words += (
                    ", means over classes: accuracy {mean_class_accuracy:.3%}, F1 {macro_f1:.3%}"
                )
                words = words.format_map(results)
            print(
                "{model}, {weights} ({which}), on {num_examples} images{left_out} of {dataset}"
                " `{split}`{of}: {words}".format(
                    which=which, left_out=left_out, of=of, words=words, **results
                )
            )
            for note in results["notes"]:
                print(f"note: {note}")
        if results.get("failed"):
            raise InputError("; ".join(results["failed"].values()))


if __name__ == "__main__":
    main()
