"""Measures the rows of tables: which weights and test sets they need, and what came out."""

import dataclasses
import datetime
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from convnext_jax import __version__, processes, sharding, starting
from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.convert.published import find_published
from convnext_jax.errors import InputError, did_you_mean
from convnext_jax.models.pretrained import PRETRAINED
from convnext_jax.models.registry import get_variant
from convnext_jax.progress import progress_bar
from convnext_jax.reproducing.page import Result, as_json, markdown, plot
from convnext_jax.reproducing.tables import SERVER, Row, Table
from convnext_jax.scoring.records import Records
from convnext_jax.scoring.scorer import Scorer
from convnext_jax.scoring.suite import Acceptance, found_parts, measured, summary
from convnext_jax.scoring.test_sets import TEST_SETS, Part, keys_of
from convnext_jax.weights.find import Weights, find

RECORDS = "results.json"
# What `--weights` may say beside a folder and the beginning of an URL.
HUB, AUTHORS = "hub", "authors"
# What of a task's options a metric needs.
_OPTIONS = {"miou_multi_scale": {"multi_scale": True}}
# What models of a test set do, where it is not to classify.
_TASKS = {"ade20k": "segmentation", "coco": "detection"}


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
        # In full: a folder of that name may lie here.
        return f"hf-hub:{PRETRAINED[row.hub].hub_id}" if row.hub in PRETRAINED else row.hub
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


class _Job:
    """One set of weights, read when something is first measured with it.

    Attributes:
      location: where it is, as `find` takes it.
      state: of its file, as it was found; a file that is replaced is another one.
      rows: that need it.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        file = Path(location)
        self.state = [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else []
        self.rows: list[Row] = []
        self._scorer: Scorer | str | None = None

    def scorer(self, mesh: Any) -> Scorer | str:
        """The scorer, or why some process has none; asked for once, and then remembered."""
        if self._scorer is None:
            found = self._find()
            self._scorer = found if isinstance(found, str) else Scorer(found, mesh)
        return self._scorer

    def free(self) -> None:
        """Lets go of the weights; they are not asked for again."""
        self._scorer = "they were used before"

    def _find(self) -> Weights | str:
        try:
            weights, why = find(self.location), ""
        except InputError as error:
            weights, why = None, str(error)
        reasons = [reason for reason in processes.texts_from_all(why) if reason]
        if reasons or weights is None:
            return reasons[0]
        starting.check_same(f"`--weights` (={self.location})", weights)
        return weights


def reproduce(
    tables: Sequence[Table],
    data_dir: str | None,
    weights: str,
    workdir: Path,
    *,
    reading: Mapping[str, Any],
    only: Sequence[str] = (),
    partial: bool = False,
    again: bool = False,
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
      again: measure also what is kept.
      say: told each result, on the first process.

    Returns:
      Whether all rows that were asked for have results.

    Raises:
      InputError: `only` names no row, or `workdir` cannot be written.
    """
    rows = _chosen(tables, only)
    kept = Records(workdir / RECORDS, again=again)
    reading = {key: value for key, value in reading.items() if value is not None}
    accepts = Acceptance(partial, reading.get("on_error") == "skip")
    needed = dict.fromkeys(row.test_set for row in rows)
    parts, missing, failed = found_parts(needed, data_dir)
    of_set = {name: [part for part in parts if part.set_name == name] for name in needed}
    absent = {name: _sentence(why) for name, why in (missing | failed).items()}
    results = _remembered(tables, Records(workdir / RECORDS), accepts)
    for row in rows:
        results.pop(row.name, None)
    jobs: dict[str, _Job] = {}
    for row in rows:
        if row.test_set in absent:
            results[row.name] = Result(None, absent[row.test_set])
        else:
            try:
                location, why = location_of(row, weights), ""
            except InputError as error:
                location, why = "", str(error)
            why = processes.text_from_first(why)
            if why:
                results[row.name] = Result(None, _sentence(why))
            else:
                jobs.setdefault(location, _Job(location)).rows.append(row)

    def found_of(row: Row, job: _Job) -> dict[str, dict[str, Any] | None]:
        """What is kept of each part of a row."""
        return {
            part.key: accepts.of(kept.find(_what(row, part, job)), part)
            for part in of_set[row.test_set]
        }

    def write(name: str = "") -> None:
        for table in tables if processes.is_first() else ():
            if not name or name in {row.name for row in table.rows}:
                _write(table, results, workdir, weights)

    total = sum(
        part.test_set.images
        for job in jobs.values()
        for row in job.rows
        for part in of_set[row.test_set]
        if found_of(row, job)[part.key] is None
    )
    mesh = sharding.create_mesh()
    with progress_bar("measuring", total, "images", shown=processes.is_first()) as bar:

        def tell(line: str) -> None:
            if processes.is_first():
                bar.write(line, file=sys.stderr)

        def measure(row: Row, part: Part, job: _Job) -> dict[str, Any] | str:
            scorer = job.scorer(mesh)
            if isinstance(scorer, str):
                return _sentence(scorer)
            if (why := _unfit(row, scorer)) is not None:
                return why
            bar.set_description(f"{row.name.partition('/')[0]} {part.key}")
            options = _OPTIONS.get(row.metric)
            batch = {"eval_batch": mesh.size} if options else {}
            found = measured(
                scorer,
                part,
                {**batch, **reading},
                partial=partial,
                moved=bar.update,
                say=tell,
                options=options,
            )
            return _sentence(found) if isinstance(found, str) else found

        for job in jobs.values():
            for row in job.rows:
                why, of_row = "", found_of(row, job)
                for part in of_set[row.test_set]:
                    if of_row[part.key] is None and not why:
                        found = measure(row, part, job)
                        if isinstance(found, str):
                            why = found
                        else:
                            for other in _measured_with(row, job):
                                kept.add(_what(other, part, job), found)
                            of_row[part.key] = found
                result = Result(None, why) if why else _result(row, of_row)
                results[row.name] = result
                if processes.is_first() and result.value is not None:
                    bar.clear()
                    say(_line(row, result))
                write(row.name)
            job.free()
    write()
    return all(results[row.name].value is not None for row in rows)


def _measured_with(row: Row, job: _Job) -> list[Row]:
    """The rows whose metrics come out with a row's, such as AP of boxes with AP of masks."""
    options = _OPTIONS.get(row.metric)
    return [
        other
        for other in job.rows
        if (other.test_set, other.size) == (row.test_set, row.size)
        and _OPTIONS.get(other.metric) == options
    ]


def _chosen(tables: Sequence[Table], only: Sequence[str]) -> list[Row]:
    """The rows of the tables that `only` names, each of whose names must name some."""
    rows = [row for table in tables for row in table.rows]
    for name in only:
        if not any(_is_named(row, name) for row in rows):
            names = {row.name.partition("/")[0] for row in rows} | {row.name for row in rows}
            raise InputError(
                f"`--only` (={name}) must name rows of {', '.join(t.name for t in tables)}"
                f"{did_you_mean(name, names)}; `--list` lists them"
            )
    chosen = [row for row in rows if not only or any(_is_named(row, name) for name in only)]
    return list({row.name: row for row in chosen}.values())  # some are in two tables


def _is_named(row: Row, name: str) -> bool:
    return row.name == name or row.name.startswith((f"{name}.", f"{name}/"))


def _remembered(tables: Sequence[Table], kept: Records, accepts: Acceptance) -> dict[str, Result]:
    """The newest results of each row that were measured by any command, with any weights of it."""
    del accepts  # a page shows what there is, and says what is partial
    results: dict[str, Result] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for what, result in kept.all():
        found.setdefault((what["row"], what["weights"]), {})[what["part"]] = result
    rows = {row.name: row for table in tables for row in table.rows}
    for (name, location), of_row in found.items():
        row = rows.get(name)
        if row is not None and set(keys_of(row.test_set)) == set(of_row):
            result = _result(row, of_row)
            remark = f"measured earlier, with {location}"
            results[name] = dataclasses.replace(result, remarks=(*result.remarks, remark))
    return results


def _unfit(row: Row, scorer: Scorer) -> str | None:
    """Why weights are not those of a row, a sentence; None: they are."""
    model = scorer.model
    task = get_variant(model.spec.name).task
    if task != (needed := _TASKS.get(row.test_set, "classification")):
        return f"Weights for {needed} are needed; {scorer.weights} are for {task}."
    if row.test_set == "coco" and not str(row.file).startswith(f"{model.spec.name}_"):
        return f"{scorer.weights} are of {model.spec.name}, which {row.model} is not."
    if row.test_set in _TASKS:
        return None  # what sizes of images it takes says the file
    size, classes = model.preprocessing.input_size, model.spec.num_classes
    for unit, needed, has in (
        ("pixels", row.size, size),
        ("classes", IMAGENET_1K_CLASSES, classes),
    ):
        if needed != has:
            return f"Weights for {needed} {unit} are needed; {scorer.weights} are for {has}."
    name = row.hub or row.path or ""
    expected = find_published(name, model.spec.name, classes)
    if expected is None:
        return f"{scorer.weights} are of {model.spec.name}, which {row.model} is not."
    return None


def _what(row: Row, part: Part, job: _Job) -> dict[str, Any]:
    """What a record says it is of."""
    return {
        "row": row.name,
        "part": part.key,
        "weights": job.location,
        "file": job.state,
        "size": row.size,
        "options": _OPTIONS.get(row.metric, {}),
        "data_dir": part.data_dir,
        "split": part.split,
    }


def _result(row: Row, found: Mapping[str, Any]) -> Result:
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
        "box_ap": lambda: 100 * of_set["box_ap"],
        "mask_ap": lambda: 100 * of_set["mask_ap"],
    }[row.metric]()
    released = TEST_SETS[row.test_set].images * len(found)
    whole = of_set["num_images"] == released and not of_set["num_skipped"]
    return Result(value, "", of_set["num_examples"], tuple(remarks), partial=not whole)


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
    picture = io.BytesIO()
    plot(table, own).savefig(picture, format="svg")
    try:
        write_at_once(workdir / f"{table.name}.md", page)
        found = json.dumps(as_json(table, own, about), indent=1)
        write_at_once(workdir / f"{table.name}.json", found + "\n")
        write_at_once(workdir / f"{table.name}.svg", picture.getvalue())
    except OSError as error:
        raise InputError(f"{workdir} must be a folder that can be written: {error}") from error
