"""Suites: weights on several test sets, part by part, going on where an earlier command stopped."""

import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from convnext_jax import processes
from convnext_jax.constants import IMAGENET_1K_CLASSES, PARAMETERS
from convnext_jax.data.folder import NAME as FOLDER
from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.progress import progress_bar
from convnext_jax.scoring.corruptions import corruption_errors, mce, mean_error
from convnext_jax.scoring.records import Records
from convnext_jax.scoring.scorer import Scorer, config_for
from convnext_jax.scoring.test_sets import TEST_SETS, NotThere, Part, parts_of

# By name: keys of `TEST_SETS`.
SUITES = {
    "robustness": tuple(name for name in TEST_SETS if name.startswith("imagenet")),
}
_RECORDS = "suite.json"
_UNPACKED = "is its archive unpacked to the end? `--partial` takes it as it is"
_WIDTH = 80


def run_suite(
    scorer: Scorer,
    suite: str,
    data_dir: str | None,
    *,
    reading: Mapping[str, Any],
    records: Path | None = None,
    only: str | None = None,
    partial: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Scores weights on the test sets of a suite that are there.

    Args:
      scorer: of the weights, a classifier's.
      suite: a key of `SUITES`.
      data_dir: where the test sets are, as `sources.open_source` takes it.
      reading: keys of `data` of a config that say how images are read.
      records: what was measured is kept there and not measured again; None: a file in the run's
        workdir, or in the current directory.
      only: some of the suite's test sets, between commas; None: all.
      partial: take a test set, too, that has another number of images than was released.
      again: measure also what is kept.

    Returns:
      What is printed: `scores` by test set; `missing`, why others are not there; and `failed`, why
      others that are there cannot be scored.

    Raises:
      InputError: none is there.
    """
    names = _chosen(suite, only)
    file = _records_file(scorer, records)
    kept = Records(file, again=again)
    parts, missing, failed = found_parts(names, data_dir)
    if not parts and not failed:
        raise InputError(f"no test set is there; {'; '.join(missing.values())}")
    accepts = Acceptance(partial, reading.get("on_error") == "skip")
    results = {p.key: accepts.of(kept.find(what_of(scorer, p)), p) for p in parts}
    todo = [part for part in parts if results[part.key] is None]
    if processes.is_first() and len(todo) < len(parts):
        print(f"{len(parts) - len(todo)} of {len(parts)} parts are in {file}", file=sys.stderr)
    total = sum(part.test_set.images for part in todo)
    with progress_bar("scoring", total, "images", shown=processes.is_first()) as bar:

        def say(line: str) -> None:
            if processes.is_first():
                bar.write(line, file=sys.stderr)

        for part in todo:
            if part.set_name in failed:
                continue
            bar.set_description(part.key)
            found = measured(scorer, part, reading, partial=partial, moved=bar.update, say=say)
            if isinstance(found, str):
                failed[part.set_name] = found
                continue
            kept.add(what_of(scorer, part), found)
            results[part.key] = found
            say(f"{part.key}: {_words(found)}")
    of_set: dict[str, dict[str, Any]] = {}
    for part in parts:
        if part.set_name not in failed:
            of_set.setdefault(part.set_name, {})[part.key] = results[part.key]
    return {
        "model": scorer.model.spec.name,
        "step": scorer.weights.step,
        "weights": str(scorer.weights),
        "parameters": scorer.weights.parameters,
        "input_size": scorer.model.preprocessing.input_size,
        "suite": suite,
        "results": str(file),
        "scores": {name: summary(name, found) for name, found in of_set.items()},
        "missing": missing,
        "failed": failed,
    }


def _chosen(suite: str, only: str | None) -> list[str]:
    if only is None:
        return list(SUITES[suite])
    chosen = [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in SUITES[suite]:
            raise InputError(
                f"`--only` (={name}) must be some of {', '.join(SUITES[suite])}"
                f"{did_you_mean(name, SUITES[suite])}"
            )
    return [name for name in SUITES[suite] if name in chosen]


def _records_file(scorer: Scorer, given: Path | None) -> Path:
    if given is not None:
        return given.expanduser().absolute()
    if scorer.weights.step is not None and "://" not in scorer.weights.source:
        place = Path(scorer.weights.source).expanduser().absolute()
        if place.parent.name == "checkpoints":  # one step's
            place = place.parent
        return (place.parent if place.name == "checkpoints" else place) / _RECORDS
    return Path(_RECORDS).absolute()


def found_parts(
    names: Iterable[str], data_dir: str | None
) -> tuple[list[Part], dict[str, str], dict[str, str]]:
    """Finds the parts of test sets; all processes do what the first one can.

    Args:
      names: keys of `TEST_SETS`.
      data_dir: where they are.

    Returns:
      The parts of those that are there, why others are not there, and why others are incomplete,
      both by their names.

    Raises:
      InputError: a test set that process 0 has is not there on this one.
    """
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    found: list[Part] = []
    for name in names:
        parts, kind, reason = [], "", ""
        try:
            parts = parts_of(name, data_dir)
        except NotThere as error:
            kind, reason = "missing", str(error)
        except InputError as error:
            kind, reason = "failed", str(error)
        first, _, why = processes.text_from_first(f"{kind}:{reason}").partition(":")
        if first:
            (missing if first == "missing" else failed)[name] = why
        elif kind:
            raise InputError(reason)
        else:
            found += parts
    return found, missing, failed


def what_of(scorer: Scorer, part: Part) -> dict[str, Any]:
    """What a record says it is of: the weights, all that is known of them, and the part."""
    weights = scorer.weights
    there = Path(weights.source).expanduser()
    return {
        "part": part.key,
        "weights": str(there.absolute()) if there.exists() else weights.source,
        "step": weights.step,
        "parameters": weights.parameters,
        "model": scorer.model.spec.name,
        "input_size": scorer.model.preprocessing.input_size,
        "fingerprint": weights.fingerprint,
        "data_dir": part.data_dir,
        "split": part.split,
    }


class Acceptance:
    """Which earlier results a command may take for its own."""

    def __init__(self, partial: bool, skip: bool) -> None:
        """Takes the command's flags.

        Args:
          partial: results of another number of images than was released, too.
          skip: those, too, that left out images which could not be read.
        """
        self._partial = partial
        self._skip = skip

    def of(self, results: dict[str, Any] | None, part: Part) -> dict[str, Any] | None:
        """The results of a part, or None where they must be measured."""
        if results is None or (results["num_skipped"] and not self._skip):
            return None
        whole = results["num_images"] == part.test_set.images
        return results if whole or self._partial else None


def measured(
    scorer: Scorer,
    part: Part,
    reading: Mapping[str, Any],
    *,
    partial: bool,
    moved: Callable[[int], object],
    say: Callable[[str], object],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any] | str:
    """Scores weights on a part of a test set.

    Args:
      scorer: of the weights.
      part: as `parts_of` gives it.
      reading: as for `run_suite`.
      partial: likewise.
      moved: as for `Scorer.score`.
      say: likewise.
      options: of the task; None: on ImageNet's validation images also those of `SUBSETS`.

    Returns:
      The results, with `num_images` of the part and `remarks`; or a sentence on why there are none:
      its classes or the number of its images are not as released, or an image cannot be read.

    Raises:
      InputError: of several processes, an image cannot be read.
    """
    test_set = part.test_set
    opened, why = None, ""
    try:
        opened = _opened(scorer, part, reading, partial, say)
    except InputError as error:
        why = str(error)
    # All go on, or none; and with the same images, however each finds them.
    images = 0 if opened is None else len(opened.source)
    stories = processes.texts_from_all(why or f"{images}")
    if opened is None or len(set(stories)) > 1:
        why = next((s for s in stories if not s.isdigit()), "")
        return why or (
            f"{test_set.title} (`{part.key}`) must have as many images on all processes, and has"
            f" {' and '.join(stories)}"
        )
    remarks = list(opened.remarks)
    if images != test_set.images:
        each = " of each severity" if test_set.corruptions else ""
        remarks.append(f"{images:,} images{each}; {test_set.images:,} were released")
    if options is None:
        options = {"also": opened.subsets} if part.key == "imagenet" else {}
    try:
        results = scorer.score(opened, options, moved, say)
    except InputError as error:
        if jax.process_count() > 1:
            raise  # the others are in the midst of it
        return f"{test_set.title} (`{part.key}`): {error}"
    moved(test_set.images - images)
    return results | {"num_images": images, "remarks": remarks}


def _opened(
    scorer: Scorer, part: Part, reading: Mapping[str, Any], partial: bool, say: Callable[..., Any]
) -> Any:
    """The part with the model's labels; InputError if it is not as it was released."""
    test_set = part.test_set
    data = {"name": part.name, "dir": part.data_dir, "eval_split": part.split}
    config = config_for(scorer.weights, {**reading, **data})
    try:
        opened = scorer.open(
            config, classes=test_set.classes, whole=test_set.whole, partial=partial, say=say
        )
    except InputError as error:
        classes = scorer.model.spec.num_classes
        some = part.name == FOLDER and classes == IMAGENET_1K_CLASSES and not partial
        hint = f"; {_UNPACKED}" if some else ""
        raise InputError(f"{test_set.title} (`{part.key}`): {error}{hint}") from error
    images = len(opened.source)
    if images != test_set.images and not partial:
        raise InputError(
            f"{test_set.title} (`{part.key}`) in {part.data_dir}, `{part.split}`, must have"
            f" {test_set.images:,} images, and has {images:,}: {_UNPACKED}"
        )
    return opened


def summary(name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results of a test set from those of its parts.

    Args:
      name: a key of `TEST_SETS`.
      found: of each part, by its key, what `measured` gave.

    Returns:
      Of one without corruptions the results of its part. Of ImageNet-C `mce` and `corruptions`, the
      corruption error of each (AlexNet's is 100); of C-bar `error`, percent, and the mean error of
      each corruption. Of both, `errors`, fractions by corruption and severity.
    """
    if not TEST_SETS[name].corruptions:
        return dict(found[name])
    errors = {
        corruption: [
            1 - result["top1"] for key, result in found.items() if key.split("/")[1] == corruption
        ]
        for corruption in TEST_SETS[name].corruptions
    }
    several: dict[str, Any] = {
        key: sum(result[key] for result in found.values())
        for key in ("num_examples", "num_skipped", "num_images")
    }
    several["remarks"] = sorted({r for result in found.values() for r in result["remarks"]})
    several["errors"] = errors
    if name == "imagenet_c":
        return several | {"mce": mce(errors), "corruptions": corruption_errors(errors)}
    means = {corruption: 100 * sum(each) / len(each) for corruption, each in errors.items()}
    return several | {"error": mean_error(errors), "corruptions": means}


def suite_lines(results: Mapping[str, Any]) -> list[str]:
    """How people read what `run_suite` gives: lines of at most 80 characters, but for paths."""
    lines = _wrapped(
        f"{results['model']}, {results['weights']} ({PARAMETERS[results['parameters']]}),"
        f" {results['input_size']} pixels:",
        "",
    )
    for name, found in results["scores"].items():
        title, images = TEST_SETS[name].title, f"{found['num_examples']:,}"
        if "mce" in found:
            words = f"mCE {found['mce']:.1f}"
        elif "error" in found:
            words = f"mean error {found['error']:.1f} %"
        else:
            words = _words(found)
        lines.append(f"  {title:<26}{images:>10} images  {words}")
        lines += [
            f"    {'classes of ' + TEST_SETS[of].title:<24}{part['num_examples']:>10,} images "
            f" {_words(part)}"
            for of, part in found.get("among", {}).items()
        ]
        lines += [
            f"    {corruption:<30}{error:>29.1f}"
            for corruption, error in found.get("corruptions", {}).items()
        ]
        if found.get("num_uncounted"):
            lines.append(f"    {found['num_uncounted']:,} more have no label and do not count")
        if found["num_skipped"]:
            lines.append(f"    {found['num_skipped']:,} could not be read")
        for remark in found["remarks"]:
            lines += _wrapped(f"note: {remark}", "    ")
    for reason in (*results["missing"].values(), *results["failed"].values()):
        lines += _wrapped(f"not scored: {reason}", "  ")
    return [*lines, *_wrapped(f"kept in {results['results']}", "  ")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _words(found: Mapping[str, Any]) -> str:
    return f"top-1 {found['top1']:.3%}, top-5 {found['top5']:.3%}"
