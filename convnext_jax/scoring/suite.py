"""Suites: weights on several test sets, part by part, going on where an earlier command stopped."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convnext_jax import processes
from convnext_jax.constants import PARAMETERS
from convnext_jax.data.imagenet_subsets import SUBSETS
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


def run_suite(
    scorer: Scorer,
    suite: str,
    data_dir: str | None,
    *,
    reading: Mapping[str, Any],
    records: Path | None = None,
    only: str | None = None,
    partial: bool = False,
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

    Returns:
      What is printed: `scores` by test set, and `missing`, the reasons of the others.

    Raises:
      InputError: a test set is incomplete or of other classes; or none is there.
    """
    names = _chosen(suite, only)
    file = _records_file(scorer, records)
    kept = Records(file)
    parts, missing = found_parts(names, data_dir)
    if not parts:
        raise InputError(f"no test set is there; {'; '.join(missing.values())}")
    known = {part.key: find_kept(kept, scorer, part) for part in parts}
    todo = [part for part in parts if known[part.key] is None]
    if processes.is_first() and len(todo) < len(parts):
        print(f"{len(parts) - len(todo)} of {len(parts)} parts are in {file}", file=sys.stderr)
    total = sum(part.test_set.images for part in todo)
    with progress_bar("scoring", total, "images", shown=processes.is_first()) as bar:
        for part in todo:
            bar.set_description(part.key)
            results = measure(
                scorer,
                part,
                reading,
                partial=partial,
                moved=bar.update,
                say=lambda line: bar.write(line, file=sys.stderr),
            )
            kept.add(what_of(scorer, part), results)
            known[part.key] = results
    of_set: dict[str, dict[str, Any]] = {}
    for part in parts:
        of_set.setdefault(part.key.partition("/")[0], {})[part.key] = known[part.key]
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
        place = Path(scorer.weights.source).expanduser()
        while place.name == "checkpoints" or place.name.isdigit():
            place = place.parent
        return place.absolute() / _RECORDS
    return Path(_RECORDS).absolute()


def found_parts(names: Sequence[str], data_dir: str | None) -> tuple[list[Part], dict[str, str]]:
    """The parts of those test sets that are there, and why the others are not; on all processes.

    Args:
      names: keys of `TEST_SETS`.
      data_dir: where they are.

    Raises:
      InputError: a test set is incomplete, or there on process 0 and not on this one.
    """
    missing: dict[str, str] = {}
    found: list[Part] = []
    for name in names:
        try:
            parts, reason = parts_of(name, data_dir), ""
        except NotThere as error:
            parts, reason = [], str(error)
        # All do what the first process can do.
        why = processes.text_from_first(reason)
        if why:
            missing[name] = why
        elif reason:
            raise NotThere(reason)
        else:
            found += parts
    return found, missing


def what_of(scorer: Scorer, part: Part) -> dict[str, Any]:
    """What a record says it is of: the weights, how images are fed to them, and the part."""
    weights = scorer.weights
    described = json.dumps(scorer.model.to_json(), sort_keys=True)
    there = Path(weights.source).expanduser()
    return {
        "part": part.key,
        "weights": str(there.absolute()) if there.exists() else weights.source,
        "step": weights.step,
        "parameters": weights.parameters,
        "sha256": weights.origin.get("sha256") or {},
        "model": scorer.model.spec.name,
        "input_size": scorer.model.preprocessing.input_size,
        "description": hashlib.sha256(described.encode()).hexdigest()[:16],
        "data_dir": part.data_dir,
        "split": part.split,
    }


def find_kept(kept: Records, scorer: Scorer, part: Part) -> dict[str, Any] | None:
    """The results of a part that was measured before."""
    return kept.find(what_of(scorer, part))


def measure(
    scorer: Scorer,
    part: Part,
    reading: Mapping[str, Any],
    *,
    partial: bool,
    moved: Callable[[int], object],
    say: Callable[[str], object],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
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
      The results, with `remarks`.

    Raises:
      InputError: its classes or the number of its images are not as released.
    """
    data = {"name": part.name, "dir": part.data_dir, "eval_split": part.split}
    config = config_for(scorer.weights, {**reading, **data})
    test_set = part.test_set
    try:
        opened = scorer.open(
            config, classes=test_set.classes, whole=test_set.whole, partial=partial
        )
    except InputError as error:
        hint = "" if partial else f"; {_UNPACKED}"
        raise InputError(f"{test_set.title} (`{part.key}`): {error}{hint}") from error
    images, remarks = len(opened.source), list(opened.remarks)
    if images != test_set.images:
        if not partial:
            raise InputError(
                f"{test_set.title} (`{part.key}`) in {part.data_dir}, `{part.split}`, must have"
                f" {test_set.images:,} images, and has {images:,}: {_UNPACKED}"
            )
        each = " of each severity" if test_set.corruptions else ""
        remarks.append(f"{images:,} images{each}; {test_set.images:,} were released")
    if options is None:
        options = {"also": SUBSETS} if part.key == "imagenet" else {}
    results = scorer.score(opened, options, moved, say)
    moved(test_set.images - images)
    return results | {"remarks": remarks}


def summary(name: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results of a test set from those of its parts.

    Args:
      name: a key of `TEST_SETS`.
      found: of each part, by its key, what `measure` gave.

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
        "num_examples": sum(result["num_examples"] for result in found.values()),
        "num_skipped": sum(result["num_skipped"] for result in found.values()),
        "remarks": sorted({remark for result in found.values() for remark in result["remarks"]}),
        "errors": errors,
    }
    if name == "imagenet_c":
        return several | {"mce": mce(errors), "corruptions": corruption_errors(errors)}
    means = {corruption: 100 * sum(each) / len(each) for corruption, each in errors.items()}
    return several | {"error": mean_error(errors), "corruptions": means}


def suite_lines(results: Mapping[str, Any]) -> list[str]:
    """How people read what `run_suite` gives, lines of at most 80 characters but for names."""
    lines = [
        f"{results['model']}, {results['weights']} ({PARAMETERS[results['parameters']]}),"
        f" {results['input_size']} pixels:"
    ]
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
        lines += [f"    note: {remark}" for remark in found["remarks"]]
    lines += [f"  not scored: {reason}" for reason in results["missing"].values()]
    return [*lines, f"  kept in {results['results']}"]


def _words(found: Mapping[str, Any]) -> str:
    return f"top-1 {found['top1']:.3%}, top-5 {found['top5']:.3%}"
