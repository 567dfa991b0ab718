"""Classifies images: `python -m convnext_jax.predict --checkpoint WORKDIR photo.jpg folder/`.

A checkpoint says itself what model it is and how its images are prepared. With `--output` the
command writes embeddings of the images instead. Models that segment or detect write files
for each image into the folder `--output`: see `locating`.

It ends with status 0 if all images could be used, with 1 if some could not (each is named on
stderr), and with 2 if its arguments cannot be used.
"""

from convnext_jax import command

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin("predict")

import argparse
import csv
import functools
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from convnext_jax.arguments import Parser
from convnext_jax.classification.grad_cam import overlay
from convnext_jax.classification.predictor import Explanation, Failure, Prediction, Predictor
from convnext_jax.constants import IMAGE_EXTENSIONS, PARAMETERS
from convnext_jax.errors import InputError, RunError, exit_in_one_sentence
from convnext_jax.export.runtimes import RUNTIMES, ExportedModel, is_exported
from convnext_jax.locating import locate, writable_folder
from convnext_jax.models.registry import get_variant
from convnext_jax.progress import progress_bar
from convnext_jax.segmentation.outputs import output_names, write_at_once
from convnext_jax.weights.find import NAMES, add_choices, find
from convnext_jax.weights.load import load


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m convnext_jax.predict",
        description="Classify, embed or segment images or detect objects, as the model does.",
    )
    parser.add_argument("images", nargs="+", help="files, and folders to search for images")
    parser.add_argument("--checkpoint", required=True, help=f"{NAMES}; or with --runtime a folder")
    add_choices(parser)
    parser.add_argument(
        "--runtime",
        choices=tuple(RUNTIMES),
        help="run what `python -m convnext_jax.export` wrote into the folder --checkpoint",
    )
    parser.add_argument("--top", type=int, default=5, help="classes to give (default: 5)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each image")
    parser.add_argument(
        "--output",
        help="of a classifier: instead of classes, write embeddings to this .npz file, with the"
        " arrays `embeddings` and `paths`, and of images that could not be used `failed` (paths)"
        " and `errors`; of models that segment or detect, which need it: the folder to write to",
    )
    parser.add_argument(
        "--least_score",
        type=float,
        help="of a model that detects: leave out what it is less sure of, 0..1 (default: 0.3)",
    )
    parser.add_argument(
        "--csv",
        metavar="FILE.csv",
        help="of a classifier: also write a table with a row for each image",
    )
    parser.add_argument(
        "--cam",
        metavar="FOLDER",
        help="of a classifier: write there what it saw of each image, with where it saw the"
        " likeliest class (Grad-CAM)",
    )
    return parser.parse_args(arguments)


def find_images(places: Sequence[str]) -> list[str]:
    """The files among `places`, and in order of their names the images in folders among them.

    Raises:
      InputError: a place does not exist, or is a folder without images or that cannot be read.
    """
    found = []
    for place in places:
        if not os.path.lexists(place):
            raise InputError(f"there is no file or folder {place}")
        if os.path.isdir(place):
            inside = list(_walk(place))
            if not inside:
                raise InputError(
                    f"the folder {place} has no images ({', '.join(IMAGE_EXTENSIONS)})"
                )
            found += inside
        else:
            found.append(place)
    return found


def _walk(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise InputError(f"the folder {error.filename} cannot be read: {error}") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders.sort()  # The walk goes on in this order.
        for file in sorted(files):
            if file.lower().endswith(IMAGE_EXTENSIONS):
                yield os.path.join(parent, file)


def predict(arguments: argparse.Namespace) -> bool:
    """Does what the arguments ask for; returns whether all images could be used.

    Raises:
      InputError: the arguments cannot be used.
    """
    images = find_images(arguments.images)
    if arguments.runtime is None and is_exported(arguments.checkpoint):
        raise InputError(
            f"{arguments.checkpoint} is an exported model: say `--runtime` {' or '.join(RUNTIMES)}"
        )
    if arguments.cam is not None and arguments.output is not None:
        raise InputError("`--cam` and `--output` must not be given together: one is for classes")
    if arguments.csv is not None and arguments.output is not None:
        raise InputError("`--csv` and `--output` must not be given together: one is for classes")
    if arguments.runtime is not None:
        for flag, given in (
            ("--step", arguments.step != "latest"),
            ("--ema", arguments.ema is not None),
            ("--cam", arguments.cam is not None),
        ):
            if given:
                raise InputError(f"`{flag}` must not be given with `--runtime`: see --help")
        model = ExportedModel(arguments.checkpoint, arguments.runtime)
        found, source, which = model.description, arguments.checkpoint, model.parameters
        if model.segments:
            return locate(arguments, images, source, which, found, lambda: {"elsewhere": model})
        if arguments.output is not None and model.num_classes:
            raise InputError(f"`--output` is for embeddings, and {source} gives logits")
    else:
        weights = find(arguments.checkpoint, step=arguments.step, ema=arguments.ema)
        found, source, which = weights.description, str(weights), weights.parameters
        if get_variant(found.spec.name).task != "classification":
            return locate(
                arguments,
                images,
                source,
                which,
                found,
                lambda: {"params": weights.read(), "batch_stats": weights.batch_stats()},
            )
        model = load(weights).model
    if arguments.least_score is not None:
        raise InputError(f"`--least_score` is for models that detect, and {source} does not")
    output = None if arguments.output is None else _writable("--output", Path(arguments.output))
    predictor = Predictor(
        model, found.preprocessing, found.class_names, batch_size=arguments.batch_size
    )
    if output is not None:
        return _embed(predictor, images, output, PARAMETERS[which], arguments.json)
    table = None if arguments.csv is None else _writable("--csv", Path(arguments.csv))
    if arguments.cam is None:
        results = predictor.predictions(images, arguments.top)
    else:
        results = _with_overlays(predictor, images, arguments)
    if not arguments.json:
        print(f"{found.spec.name}, {source} ({PARAMETERS[which]}):")
    failures, rows = 0, list[list[object]]()
    with progress_bar("predicting", len(images), "images", beside_output=True) as bar:
        for path, result in zip(images, results, strict=True):
            if isinstance(result, Failure):
                bar.write(f"error: {result.error}", file=sys.stderr)
                failures += 1
            if arguments.json:
                row = {"image": path} | _as_json(result)
                if not isinstance(result, Failure):
                    row["parameters"] = which
                print(json.dumps(row), flush=True)
            elif not isinstance(result, Failure):
                print(_as_table(path, result), flush=True)
            if table is not None:
                rows.append(_as_row(path, result))
            bar.update()
    if table is not None:
        _write_table(table, rows, min(arguments.top, predictor.num_classes))
    return not failures


def _with_overlays(
    predictor: Predictor, images: list[str], arguments: argparse.Namespace
) -> Iterator[Prediction | Failure]:
    """The predictions; each image's overlay is written before its prediction is given."""
    names = output_names(images, arguments.images, "_cam.png", "--cam")
    writable_folder("--cam", Path(arguments.cam))
    explained = predictor.explanations(images, arguments.top)
    return _written(Path(arguments.cam), names, explained)


def _written(
    folder: Path, names: list[str], found: Iterator[Explanation | Failure]
) -> Iterator[Prediction | Failure]:
    for name, result in zip(names, found, strict=True):
        if isinstance(result, Failure):
            yield result
            continue
        picture = overlay(result.seen, result.heat)
        file = folder / f"{name}_cam.png"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(file, functools.partial(picture.save, format="PNG"))
        except OSError as error:
            raise RunError(f"writing {file} failed: {error}") from error
        yield result.prediction


def _counted(images: list[str], bar: tqdm) -> Iterator[str]:
    for image in images:
        yield image
        bar.update()


def _as_json(result: Prediction | Failure) -> dict[str, object]:
    if isinstance(result, Failure):
        return {"error": result.error}
    rows = zip(result.labels, result.names, result.probabilities, strict=True)
    return {"classes": [{"label": i, "name": n, "probability": p} for i, n, p in rows]}


def _as_row(path: str, result: Prediction | Failure) -> list[object]:
    """What `_write_table` writes of an image: its path, an error if any, its classes."""
    if isinstance(result, Failure):
        return [path, result.error]
    pairs = zip(result.names, result.probabilities, strict=True)
    return [path, "", *(value for name, p in pairs for value in (name, f"{p:.6f}"))]


def _write_table(path: Path, rows: Sequence[Sequence[object]], top: int) -> None:
    """Writes predictions as CSV.

    Args:
      path: written under another name first.
      rows: as `_as_row` makes them.
      top: classes of an image.
    """
    header = ["image", "error", "class", "probability"]
    header += [f"{what}_{place}" for place in range(2, top + 1) for what in header[2:]]

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            filled = ([*row, *[""] * (len(header) - len(row))] for row in rows)
            csv.writer(file).writerows([header, *filled])

    try:
        write_at_once(path, write)
    except OSError as error:
        raise RunError(f"writing {path} failed: {error}") from error


def _as_table(path: str, result: Prediction) -> str:
    rows = zip(result.names, result.probabilities, strict=True)
    return "\n".join([path, *(f"  {probability:7.2%}  {name}" for name, probability in rows)])


def _writable(flag: str, path: Path) -> Path:
    """Returns `path`, which `flag` names, once it is seen that a file can be put there."""
    part = _part(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        part.write_bytes(b"")
        part.unlink()
    except OSError as error:
        raise InputError(
            f"`{flag}` (={path}) must be a file that can be written: {error}"
        ) from error
    return path


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _embed(
    predictor: Predictor, images: list[str], output: Path, which: str, as_json: bool
) -> bool:
    """Writes an archive with `embeddings` [N, D], `paths` [N], and `failed` paths with `errors`."""
    with progress_bar("embedding", len(images), "images") as bar:
        vectors, errors = predictor.embed(_counted(images, bar))
    for sentence in errors.values():
        print(f"error: {sentence}", file=sys.stderr)
    good = [i for i in range(len(images)) if i not in errors]
    part = _part(output)
    try:
        # Given an open file NumPy does not add an ending to its name.
        with part.open("wb") as file:
            np.savez(
                file,
                embeddings=vectors[good],
                paths=np.array([images[i] for i in good], dtype=np.str_),
                failed=np.array([images[i] for i in errors], dtype=np.str_),
                errors=np.array(list(errors.values()), dtype=np.str_),
            )
        part.replace(output)
    except OSError as error:
        raise RunError(f"writing {output} failed: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    written = {
        "output": str(output),
        "images": len(good),
        "size": vectors.shape[1],
        "parameters": which,
    }
    print(
        json.dumps(written)
        if as_json
        else "{output}: embeddings of {images} images, {size} numbers each ({parameters})".format(
            **written
        )
    )
    return not errors


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    logging.set_verbosity(logging.FATAL)
    warnings.filterwarnings("ignore", module="PIL")  # Of images that can be used all the same.
    parsed = parse_arguments(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    with exit_in_one_sentence():
        complete = predict(parsed)
        sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
