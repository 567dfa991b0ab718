"""Measures the rows of tables: which weights and test sets they need, and what came out."""

import dataclasses
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from convnext_jax import __version__, processes, sharding, starting
from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.errors import InputError
from convnext_jax.progress import progress_bar
from convnext_jax.reproducing.page import Result, as_json, markdown, plot
from convnext_jax.reproducing.tables import SERVER, Row, Table
from convnext_jax.scoring.records import Records
from convnext_jax.scoring.scorer import Scorer
from convnext_jax.scoring.suite import found_parts, measure, summary
from convnext_jax.scoring.test_sets import TEST_SETS, Part
from convnext_jax.weights.find import Weights, find

RECORDS = "results.json"
# What `--weights` may say beside a folder and the beginning of an URL.
HUB, AUTHORS = "hub", "authors"


@dataclasses.dataclass
class _Job:
    """What is measured with one set of weights.

    Attributes:
      location: where they are, as `find` takes it.
      rows: that need them.
    """

    location: str
    rows: list[Row]


def location_of(row: Row, weights: str) -> str:
    """Where a row's weights are.

    Args:
      row: of a table.
      weights: `hub`, `authors`, the beginning of an URL, or a folder with the authors' files.

    Returns:
      What `weights.find` takes.

    Raises:
      InputError: they are not there, as far as can be told without asking a server.
    """
    if weights == HUB:
        if row.hub is None:
            raise InputError(
                f"the Hub has no such weights; `--weights={AUTHORS}` takes {row.path} from the"
                " authors' server"
                if row.path
                else "no published weights are known"
            )
        return row.hub
    if row.path is None:
        raise InputError("no file of the authors' is known")
    if weights == AUTHORS:
        return SERVER + row.path
    if "://" in weights:
        return f"{weights.rstrip('/')}/{row.path}"
    folder = Path(weights).expanduser().absolute()
    for file in (folder / row.path, folder / Path(row.path).name):
        if file.exists():
            return str(file)
    raise InputError(f"put {Path(row.path).name} into {folder}: it comes from {SERVER}{row.path}")


def reproduce(
    tables: Sequence[Table],
    data_dir: str | None,
    weights: str,
    workdir: Path,
    *,
    reading: Mapping[str, Any],
    only: Sequence[str] = (),
    partial: bool = False,
    say: Callable[[str], object] = print,
) -> bool:
    """Measures what of the tables can be measured, and writes pages of them.

    Args:
      tables: of `TABLES`.
      data_dir: where the test sets are.
      weights: as for `location_of`.
      workdir: has `results.json`, from which nothing is measured again, and of each table a page
        (`.md`), the same for programs (`.json`) and a picture (`.svg`).
      reading: keys of `data` of a config that say how images are read.
      only: names of rows, or their parts before `.` or `/`; none: all rows.
      partial: take test sets with another number of images than was released.
      say: told each result, on the first process.

    Returns:
      Whether all rows that were asked for have results.

    Raises:
      InputError: a test set is incomplete, or `workdir` cannot be written.
    """
    records = Records(workdir / RECORDS)
    chosen = {
        table.name: [row for row in table.rows if not only or _is_named(row, only)]
        for table in tables
    }
    rows = [row for of_table in chosen.values() for row in of_table]
    if not rows:
        raise InputError(f"`--only` (={','.join(only)}) must name rows of the table: see `--list`")
    needed = dict.fromkeys(row.test_set for row in rows)
    parts, missing_sets = found_parts([name for name in needed if name in TEST_SETS], data_dir)
    of_set = {name: [p for p in parts if p.key.partition("/")[0] == name] for name in needed}
    results: dict[str, Result] = {}
    jobs: dict[str, _Job] = {}
    for row in rows:
        if row.test_set not in TEST_SETS:
            results[row.name] = Result(None, "Wait for a version of this project that detects.")
        elif row.test_set in missing_sets:
            results[row.name] = Result(None, _sentence(missing_sets[row.test_set]))
        else:
            try:
                location, why = location_of(row, weights), ""
            except InputError as error:
                location, why = "", str(error)
            why = processes.text_from_first(why)
            if why:
                results[row.name] = Result(None, _sentence(why))
            else:
                jobs.setdefault(location, _Job(location, [])).rows.append(row)

    def kept(row: Row, location: str) -> dict[str, Any] | None:
        """The results of all parts of a row, by their keys; None: some are not there."""
        found = {p.key: records.find(_what(row, p, location)) for p in of_set[row.test_set]}
        return None if None in found.values() else found

    def write(name: str = "") -> None:
        for table in tables if processes.is_first() else ():
            if not name or name in {row.name for row in table.rows}:
                _write(table, results, workdir, weights)

    todo = {
        location: [row for row in job.rows if kept(row, location) is None]
        for location, job in jobs.items()
    }
    total = sum(
        part.test_set.images
        for location, of_job in todo.items()
        for row in of_job
        for part in of_set[row.test_set]
        if records.find(_what(row, part, location)) is None
    )
    mesh = sharding.create_mesh()
    with progress_bar("measuring", total, "images", shown=processes.is_first()) as bar:
        for location, job in jobs.items():
            scorer: Scorer | None = None
            for row in job.rows:
                if row in todo[location] and scorer is None:
                    found = _found(location)
                    if isinstance(found, str):
                        for each in todo[location]:
                            results[each.name] = Result(None, _sentence(found))
                    else:
                        scorer = Scorer(found, mesh)
                if row.name in results:
                    continue
                if (why := _unfit(row, scorer)) is not None:
                    results[row.name] = Result(None, why)
                    continue
                for part in of_set[row.test_set] if row in todo[location] else ():
                    what = _what(row, part, location)
                    if records.find(what) is None:
                        assert scorer is not None
                        bar.set_description(f"{row.name.partition('/')[0]} {part.key}")
                        options = _OPTIONS.get(row.metric)
                        batch = {"eval_batch": mesh.size} if options else {}
                        found_part = measure(
                            scorer,
                            part,
                            {**batch, **{k: v for k, v in reading.items() if v is not None}},
                            partial=partial,
                            moved=bar.update,
                            say=lambda line: bar.write(line, file=sys.stderr),
                            options=options,
                        )
                        records.add(what, found_part)
                results[row.name] = _result(row, kept(row, location) or {})
                if processes.is_first():
                    bar.clear()
                    say(_line(row, results[row.name]))
                write(row.name)
    write()
    return all(results[row.name].value is not None for row in rows)


def _is_named(row: Row, only: Sequence[str]) -> bool:
    return any(row.name == name or row.name.startswith((f"{name}.", f"{name}/")) for name in only)


# What of a task's options a metric needs.
_OPTIONS = {"miou_multi_scale": {"multi_scale": True}}


def _found(location: str) -> Weights | str:
    """Weights, or why some process has none."""
    try:
        weights, why = find(location), ""
    except InputError as error:
        weights, why = None, str(error)
    reasons = [reason for reason in processes.texts_from_all(why) if reason]
    if reasons or weights is None:
        return reasons[0]
    starting.check_same(f"`--weights` (={location})", weights)
    return weights


def _unfit(row: Row, scorer: Scorer | None) -> str | None:
    """Why weights are not those of a row, a sentence; None: they are, or are not needed."""
    if scorer is None or row.test_set == "ade20k":
        return None  # which of both sizes of windows it is says the file
    size, classes = scorer.model.preprocessing.input_size, scorer.model.spec.num_classes
    for unit, needed, has in (
        ("pixels", row.size, size),
        ("classes", IMAGENET_1K_CLASSES, classes),
    ):
        if needed != has:
            return f"Weights for {needed} {unit} are needed; {scorer.weights} are for {has}."
    return None


def _what(row: Row, part: Part, location: str) -> dict[str, Any]:
    """What a record says it is of; a file that is replaced is another one."""
    file = Path(location)
    state = [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else []
    return {
        "part": part.key,
        "weights": location,
        "file": state,
        "size": row.size,
        "options": _OPTIONS.get(row.metric, {}),
        "data_dir": part.data_dir,
        "split": part.split,
    }


def _result(row: Row, found: Mapping[str, Mapping[str, Any]]) -> Result:
    of_set = summary(row.test_set, found)
    remarks = list(of_set["remarks"])
    if of_set["num_skipped"]:
        remarks.append(f"{of_set['num_skipped']:,} images of {row.test_set} could not be read")
    value = {
        "top1": lambda: 100 * of_set["top1"],
        "mce": lambda: of_set["mce"],
        "error": lambda: of_set["error"],
        "miou": lambda: 100 * of_set["miou"],
        "miou_multi_scale": lambda: 100 * of_set["miou"],
    }[row.metric]()
    return Result(value, "", of_set["num_examples"], tuple(remarks))


def _line(row: Row, result: Result) -> str:
    assert result.value is not None
    first = row.published[0]
    return (
        f"{row.name}: {result.value:.3f} ({first.source}: {first.value};"
        f" {result.value - first.value:+.3f})"
    )


def _sentence(why: str) -> str:
    first = why.partition(" ")[0]
    capital = why[:1].upper() if first.isalpha() else why[:1]  # not of a path or an URL
    return f"{capital}{why[1:]}{'' if why.endswith('.') else '.'}"


def _write(table: Table, results: Mapping[str, Result], workdir: Path, weights: str) -> None:
    """Writes what there is of a table; each file at once."""
    names = {row.name for row in table.rows}
    own = {name: result for name, result in results.items() if name in names}
    device = jax.devices()[0].device_kind
    about = {
        "date": datetime.date.today().isoformat(),
        "weights": weights,
        "devices": f"{jax.device_count()} x {device}",
        "versions": ", ".join(
            [f"convnext_jax {__version__}"]
            + [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax")]
        ),
    }
    page = markdown(table, own, about) + f"\n![ours beside the published]({table.name}.svg)\n"
    picture = workdir / f"{table.name}.svg"
    write_at_once(workdir / f"{table.name}.md", page)
    found = json.dumps(as_json(table, own, about), indent=1)
    write_at_once(workdir / f"{table.name}.json", found + "\n")
    partial = picture.with_name(f".{picture.name}")
    plot(table, own).savefig(partial, format="svg")
    partial.replace(picture)
