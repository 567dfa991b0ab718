"""Curves as SVG that takes its colours from the page around it."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# A curve has at most so many points: means of stretches of it, which the eye cannot tell apart.
_POINTS = 400
# Stand-ins in what matplotlib draws, for colours that the page says: light or dark.
_INK, _FAINT = "#010203", "#010204"
_LINES = tuple(f"#0102{number:02x}" for number in range(16, 24))


class Curve(NamedTuple):
    """One line of a chart.

    Attributes:
      label: what the legend calls it.
      x: places, in order.
      y: values.
      run: number of the run that it is of; curves of a run have its colour.
      dashed: drawn so.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    run: int = 0
    dashed: bool = False


def chart(title: str, across: str, curves: Sequence[Curve], *, legend: bool = True) -> str:
    """Draws curves into an SVG element, as wide as where it stands.

    Args:
      title: above it.
      across: what the x axis counts.
      curves: of any lengths; those that are empty are left out.
      legend: whether to say which is which.

    Returns:
      The element.
    """
    import matplotlib
    import matplotlib.figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # the same page for the same run
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.limits": (-3, 5),
    }
    style |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    )
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.set_title(_escaped(title), fontsize=11)
        axes.set_xlabel(across, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color=_FAINT, linewidth=0.5)
        shown = [curve for curve in curves if len(curve.x)]
        for curve in shown:
            x, y = _shortened(curve.x), _shortened(curve.y)
            axes.plot(
                x,
                y,
                color=_LINES[curve.run % len(_LINES)],
                label=_escaped(curve.label),
                linestyle="--" if curve.dashed else "-",
                marker="." if len(x) < 30 else "",
                linewidth=1.4,
            )
        if legend and len(shown) > 1:
            axes.legend(fontsize=8, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = drawn.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    for number, colour in enumerate(_LINES):
        drawn = drawn.replace(colour, f"var(--line{number})")
    # As wide as its place, not as matplotlib says; and names of its own, as a page has several.
    for _ in ("width", "height"):
        drawn = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.S)
    key = re.sub(r"\W", "", title)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", drawn)


def _escaped(text: str) -> str:
    """Without what matplotlib takes for mathematics, or for a label that a legend leaves out."""
    return text.replace("$", r"\$").lstrip("_") or " "


def _shortened(values: Sequence[float]) -> np.ndarray:
    """Means of stretches, at most `_POINTS` of them; of what is not finite, gaps."""
    array = np.array([math.nan if v is None else v for v in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    if len(array) <= _POINTS:
        return array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a stretch that is a gap
        return np.array([np.nanmean(part) for part in np.array_split(array, _POINTS)])
