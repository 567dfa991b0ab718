"""Results beside the published numbers: as Markdown, JSON, a picture and lines of a terminal."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convnext_jax.reproducing.tables import Published, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEST_SETS = {"imagenet": "ImageNet", "ade20k": "ADE20K", "coco": "COCO"} | {
    f"imagenet_{ending.lower().replace('-', '_')}": f"ImageNet-{ending}"
    for ending in ("A", "R", "Sketch", "V2", "ReaL", "C", "C-bar")
}
_METRICS = {
    "top1": "top-1, percent",
    "mce": "mCE, lower is better",
    "error": "mean error, percent, lower is better",
    "miou": "mean IoU, windows",
    "miou_multi_scale": "mean IoU, six sizes",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
}
_COLOURS = {"within": "#2563eb", "outside": "#ea580c", "tolerance": "#94a3b8"}


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured for a row, or why nothing was.

    Attributes:
      value: in the units of the row's published value; None: not measured.
      missing: where nothing was measured, a sentence that says what to do.
      num_examples: images that the value is of.
      remarks: sentences that a reader of the value must know.
      partial: the value is of a part of the test set, which no tolerance is for.

    Raises:
      ValueError: there is both a value and what is missing, or neither, or the value is not finite.
    """

    value: float | None
    missing: str = ""
    num_examples: int | None = None
    remarks: tuple[str, ...] = ()
    partial: bool = False

    def __post_init__(self) -> None:
        """Checks that it is one of both."""
        if (self.value is None) != bool(self.missing) or not math.isfinite(self.value or 0):
            given = f"`value` (={self.value}), or else `missing` (={self.missing!r})"
            raise ValueError(f"a result must have a finite {given}")


def markdown(table: Table, results: Mapping[str, Result], about: Mapping[str, str]) -> str:
    """The table with our results, what is missing, and what a reader must know.

    Args:
      table: the published numbers.
      results: by the names of rows; a row without one was not tried.
      about: how they were measured, such as the date and the device.

    Raises:
      ValueError: a result is of no row of the table.
    """
    found = _found(table, results)
    measured = [(row, result) for row, result in found if result.value is not None]
    good = sum(_is_within(row, result, row.published[0]) for row, result in measured)
    sources = dict.fromkeys(row.published[0].source for row in table.rows)
    papers = "; ".join(source for source in sources if source.startswith("paper"))
    parts = [
        f"# {_line(table.title)}",
        f"{len(measured)} of {len(found)} rows were measured, {good} of them within tolerance.",
        f"Published numbers that name no source are of: {papers}." if papers else "",
    ]
    head = "model, trained on, pixels, test set, published, here, difference, within, images"
    cells = [head.split(", "), ["---"] * 9, *(_cells(row, result) for row, result in found)]
    parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in cells))
    parts.append("\n".join(f"- {_line(key)}: {_line(value)}" for key, value in about.items()))
    missing = ((result.missing, row.name) for row, result in found if result.missing)
    remarks = ((text, row.name) for row, result in found for text in (*result.remarks, row.note))
    for heading, said in (("Not measured", missing), ("Remarks", remarks)):
        listed = _grouped(said, len(found))
        parts.append(f"## {heading}\n\n{listed}" if listed else "")
    return "\n\n".join(filter(None, parts)) + "\n"


def as_json(
    table: Table, results: Mapping[str, Result], about: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that is known of the table, for `json.dumps`; the arguments are `markdown`'s.

    Of a row that was not measured, `value`, `difference` and `within_tolerance` are None.

    Raises:
      ValueError: a result is of no row of the table.
    """
    rows = []
    for row, result in _found(table, results):
        entry = {"name": row.name} | dataclasses.asdict(row) | dataclasses.asdict(result)
        entry["published"] = [
            dataclasses.asdict(said) | {"difference": _difference(result, said)}
            for said in row.published
        ]
        entry["remarks"] = list(result.remarks)
        entry["difference"] = _difference(result, row.published[0])
        within = _is_within(row, result, row.published[0])
        judged = result.value is not None and not result.partial
        rows.append(entry | {"within_tolerance": within if judged else None})
    return {"name": table.name, "title": table.title, "about": dict(about), "rows": rows}


def plot(table: Table, results: Mapping[str, Result]) -> "Figure":
    """Ours against the published, and the difference against the tolerance; a column a metric.

    Args:
      table: the published numbers.
      results: by the names of rows. Those outside the tolerance are named under the picture.

    Raises:
      ValueError: a result is of no row of the table.
    """
    from matplotlib.figure import Figure

    shown = [(row, result) for row, result in _found(table, results) if result.value is not None]
    columns = {row.metric: [x for x in shown if x[0].metric == row.metric] for row, _ in shown}
    named = [sum(not _is_within(*x, x[0].published[0]) for x in c) for c in columns.values()]
    size = (max(6, 4.5 * len(columns)), 6 + 0.15 * max(named, default=0))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(table.title, fontsize=11, parse_math=False)
    if not shown:
        text = f"None of the {len(table.rows)} rows of this table has been measured."
        figure.text(0.5, 0.5, text, ha="center")
        return figure
    axes = figure.subplots(2, len(columns), squeeze=False, sharex="col", height_ratios=(3, 2))
    for (metric, column), upper, lower in zip(columns.items(), *axes, strict=True):
        _panel(upper, lower, column)
        upper.set_title(_METRICS[metric], fontsize=10)
        lower.set_xlabel("published")
    axes[0, 0].set_ylabel("here")
    axes[1, 0].set_ylabel("here - published")
    return figure


def _panel(upper: Any, lower: Any, shown: list[tuple[Row, Result]]) -> None:
    """One metric: values in the upper axes, differences in the lower."""
    x = [row.published[0].value for row, _ in shown]
    reached = [*x, *(result.value for _, result in shown if result.value is not None)]
    room = 0.06 * (max(x) - min(x)) or 1  # one point alone has a scale too
    upper.axline((x[0], x[0]), slope=1, color=_COLOURS["tolerance"], linewidth=1)
    lower.axhline(0, color=_COLOURS["tolerance"], linewidth=1)
    upper.set_xlim(min(x) - room, max(x) + room)
    upper.set_ylim(min(reached) - room, max(reached) + room)
    tolerances = [row.tolerance for row, _ in shown]
    for axes, centres in ((upper, x), (lower, [0] * len(x))):
        axes.spines[["top", "right"]].set_visible(False)
        style = {"fmt": "none", "ecolor": _COLOURS["tolerance"], "capsize": 3}
        axes.errorbar(x, centres, tolerances, label="tolerance" if axes is upper else None, **style)
    number = 0
    for row, result in sorted(shown, key=lambda found: found[0].published[0].value):
        place, difference = row.published[0].value, _difference(result, row.published[0])
        within = _is_within(row, result, row.published[0])
        style = {"color": _COLOURS["within" if within else "outside"], "zorder": 3}
        points = [upper.scatter(place, result.value, s=18, **style)]
        points.append(lower.scatter(place, difference, s=18, **style))
        if not within:
            number += 1
            points[1].set_label(f"{number}: {row.name}")
            for axes, y in ((upper, result.value), (lower, difference)):
                beside = {"textcoords": "offset points", "fontsize": 7}
                axes.annotate(str(number), (place, y), (4, 3), **beside, **style)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    if number:  # names are too long to stand beside points
        lower.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.25))


def lines(table: Table, weights: str) -> list[str]:
    """A listing for a terminal of 80 columns: rows under the weights that they need.

    Args:
      table: the published numbers.
      weights: `hub`: weights are called by their published names; anything else is where the
        authors' files are, and they are called by these.
    """
    listed = textwrap.wrap(f"{table.name}: {table.title}", 80)
    absent = "(no published name)" if weights == "hub" else "(no known file)"
    calls = itertools.groupby(table.rows, lambda row: row.hub if weights == "hub" else row.file)
    for name, rows in calls:
        listed.append(f"  {absent if name is None else name}")
        listed += [f"    {row.name:<62} {row.published[0].value!r:>7}" for row in rows]
    return listed


def _found(table: Table, results: Mapping[str, Result]) -> list[tuple[Row, Result]]:
    """The rows with their results."""
    if unknown := set(results) - {row.name for row in table.rows}:
        raise ValueError(f"results of {sorted(unknown)}, which are no rows of `{table.name}`")
    return [(row, results.get(row.name, Result(None, "Not tried."))) for row in table.rows]


def _difference(result: Result, said: Published) -> float | None:
    """Ours minus the published, rounded: 82.2 - 82.1 must not be above 0.1; None: no result."""
    return None if result.value is None else round(result.value - said.value, 6)


def _is_within(row: Row, result: Result, said: Published) -> bool:
    difference = _difference(result, said)
    return difference is not None and not result.partial and abs(difference) <= row.tolerance


def _cells(row: Row, result: Result) -> tuple[str, ...]:
    """A line of the table in Markdown."""
    first, *others = row.published
    ours, difference, within = "", "", ""
    if result.value is not None:
        ours = f"{result.value:.3f}"
        difference = f"{round(result.value - first.value, 3) + 0.0:+.3f}"  # 0 is not -0
        agreeing = [other.source for other in others if _is_within(row, result, other)]
        within = f"no (±{row.tolerance})" + (f"; of {', '.join(agreeing)}: yes" if agreeing else "")
        if _is_within(row, result, first):
            within = f"yes (±{row.tolerance})"
        if result.partial:
            within = "a part of the set"
    beside = "; ".join(f"{other.source}: {other.value}" for other in others)
    said = "" if first.source.startswith("paper") else f"{first.source}: "
    said += f"{first.value} ({beside})" if beside else f"{first.value}"
    what = f"{_TEST_SETS[row.test_set]}, {_METRICS[row.metric]}"
    images = "" if result.num_examples is None else f"{result.num_examples:,}"
    return row.model, row.data, str(row.size), what, said, ours, difference, within, images


def _grouped(said: Iterable[tuple[str, str]], rows: int) -> str:
    """A list of sentences, each once, with the names of the rows that it is said of."""
    names: dict[str, list[str]] = {}
    for sentence, name in said:
        if sentence:
            names.setdefault(_line(sentence), []).append(name)
    return "\n".join(
        f"- {sentence} ({'all rows' if len(of) == rows else ', '.join(f'`{n}`' for n in of)})"
        for sentence, of in names.items()
    )


def _line(text: str) -> str:
    """Without line breaks, which would end a list's item or a table's row."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """A table's cell: a bar would begin another one."""
    return _line(text).replace("|", r"\|")
