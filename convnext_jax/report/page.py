"""The page: HTML with everything inside, for any width, in the light and in the dark."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from convnext_jax.report.mistakes import Findings, matrix, per_class

# With more classes the matrix is a picture, and only the worst are listed.
_FEW_CLASSES = 24
_LISTED = 40
# With more there is no matrix: it would be larger than browsers show.
_MOST_CLASSES = 2000
_THUMBNAIL = 192  # pixels

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --back: #fff; --faint: #d9dee5;
  --soft: #f4f6f9; --good: 28, 126, 214; --bad: 214, 69, 65;
  --line0: #1c7ed6; --line1: #e8590c; --line2: #2f9e44; --line3: #9c36b5;
  --line4: #c92a2a; --line5: #0b7285; --line6: #846358; --line7: #5c636a; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ec; --back: #14181d;
  --faint: #363d46; --soft: #1c2229; --good: 77, 171, 247; --bad: 255, 135, 135;
  --line0: #4dabf7; --line1: #ff922b; --line2: #69db7c; --line3: #da77f2;
  --line4: #ff8787; --line5: #3bc9db; --line6: #c9a58f; --line7: #adb5bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; }
.grid svg { width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
.tile { background: var(--soft); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.25rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--soft); border-radius: .5rem; padding: .6rem; }
figure div { display: flex; gap: .4rem; } figure img { width: 50%; border-radius: .25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
td, th { padding: .2rem .5rem; text-align: left; border-bottom: 1px solid var(--faint); }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:not(.n), th { overflow-wrap: break-word; word-break: normal; max-width: 24rem; }
tr:first-child th { vertical-align: bottom; }
.matrix td { text-align: center; border: 0; min-width: 2rem; white-space: nowrap; }
.matrix th { max-width: 8rem; overflow-wrap: anywhere; }
.matrix img, .sheet { max-width: 100%; image-rendering: pixelated; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
small { opacity: .75; }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """The page from its sections, which are HTML; `title` is text."""
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A heading, which is text, and what is under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}\n</section>"


def folded(title: str, content: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def note(text: str) -> str:
    """A sentence."""
    return f"<p><small>{escape(text)}</small></p>"


def tiles(facts: Mapping[str, str]) -> str:
    """The main facts, each in a box of its own."""
    boxes = [
        f'<div class="tile">{escape(name)}<b>{escape(value)}</b></div>'
        for name, value in facts.items()
    ]
    return f'<div class="tiles">{"".join(boxes)}</div>'


def charts(drawn: Sequence[str]) -> str:
    """SVG elements side by side."""
    return f'<div class="grid">{"".join(f"<div>{chart}</div>" for chart in drawn)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of texts and numbers; nan is left empty."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return f"<td>{escape(value)}</td>"
        empty = value is None or value != value
        shown = "" if empty else f"{value:,}" if isinstance(value, int) else f"{value:.1f}"
        return f'<td class="n">{shown}</td>'

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def picture(image: Image.Image, *, kind: str = "JPEG", alternative: str = "") -> str:
    """An image inside the page; `alternative` is text for who cannot see it."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/{kind.lower()};base64,{data}" alt="{escape(alternative)}">'


def classes(found: Findings) -> str:
    """What is taken for what: scores of classes, and the matrix."""
    names = found.class_names
    scores = per_class(found.pairs, len(names))
    counts = scores["examples"]
    most: dict[int, tuple[int, int]] = {}  # of each label, how many were taken for which other
    for (label, other), count in found.pairs.items():
        if label != other and count > most.get(label, (0, 0))[0]:
            most[label] = count, other

    def row(label: int) -> list[Any]:
        count, other = most.get(label, (0, 0))
        taken = f"{names[other]} ({count})" if count else ""
        values = [100 * float(scores[name][label]) for name in ("recall", "precision", "f1")]
        return [names[label], int(counts[label]), *values, taken]

    recall = np.nan_to_num(np.asarray(scores["recall"]), nan=2)
    order = np.argsort(recall, kind="stable")[:_LISTED].tolist()
    head = ["class", "examples", "accuracy %", "precision %", "F1 %", "most often taken for"]
    looked = int(counts.sum())
    parts = [
        note(
            f"{looked:,} of {found.total:,} examples of `{found.split}`"
            + (f"; the {_LISTED} worst of {len(names):,} classes" if len(names) > _LISTED else "")
        ),
        table(head, (row(label) for label in order)),
    ]
    if len(names) <= _MOST_CLASSES:
        parts += ["<h3>Confusion matrix</h3>", _matrix(names, matrix(found.pairs, len(names)))]
    return section("Classes", *parts)


def _matrix(names: Sequence[str], confusion: np.ndarray) -> str:
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    if len(names) > _FEW_CLASSES:
        # A pixel or more for each cell; blue where right, red where wrong, by the share of a row.
        paint = np.full((*confusion.shape, 3), 255.0)
        right = np.eye(len(names), dtype=bool)[..., None]
        colours = np.where(right, (28, 126, 214), (214, 69, 65))
        strength = np.sqrt(shares)[..., None]
        paint = (1 - strength) * paint + strength * colours
        factor = max(1, 480 // len(names))
        image = Image.fromarray(paint.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1))
        said = note("Rows are classes, columns what they are taken for, in the order of labels.")
        drawn = picture(image, kind="PNG", alternative="confusion matrix")
        return f'<div class="matrix">{drawn}</div>{said}'
    rows = []
    for label, (counts, row) in enumerate(zip(confusion.tolist(), shares.tolist(), strict=True)):
        cells = "".join(
            f'<td style="background: rgba(var(--{"good" if label == i else "bad"}),'
            f' {share:.2f})">{count or ""}</td>'
            for i, (count, share) in enumerate(zip(counts, row, strict=True))
        )
        rows.append(f"<tr><th>{escape(names[label])}</th>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    inside = f"<tr><th></th>{head}</tr>{''.join(rows)}"
    said = note("Rows are classes, columns what they are taken for.")
    return f'<div class="wide matrix"><table>{inside}</table></div>{said}'


def mistakes(found: Findings) -> str:
    """The surest ones, with where the model sees the wrong class."""
    cards = []
    for mistake in found.mistakes:
        label, taken = (found.class_names[i] for i in (mistake.label, mistake.found))
        pictures = "".join(
            picture(_thumbnail(image), alternative=words)
            for image, words in ((mistake.seen, label), (mistake.explained, f"why {taken}"))
        )
        words = f"{escape(label)}, taken for <b>{escape(taken)}</b>, {mistake.probability:.1%}"
        cards.append(
            f"<figure><div>{pictures}</div><figcaption>{words}"
            f"<br><small>example {mistake.index}</small></figcaption></figure>"
        )
    if not cards:
        return section("Surest mistakes", note("There is none among the examples looked at."))
    said = note(
        "What the model saw, and where it sees the class it names (Grad-CAM): the brighter, the"
        " more speaks for it."
    )
    return section("Surest mistakes", said, f'<div class="cards">{"".join(cards)}</div>')


def _thumbnail(image: Image.Image) -> Image.Image:
    side = max(image.size)
    if side > _THUMBNAIL:
        image = image.copy()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    elif side * 2 <= _THUMBNAIL:  # small pictures keep their pixels
        factor = _THUMBNAIL // side
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    return image.convert("RGB")
