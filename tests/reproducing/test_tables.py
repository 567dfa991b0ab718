"""The published numbers as data, and results beside them."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest

from convnext_jax.constants import ADE20K_CLASSES
from convnext_jax.convert import upernet_settings
from convnext_jax.convert.formats import DIALECTS
from convnext_jax.convert.published import find_published
from convnext_jax.models.pretrained import PRETRAINED
from convnext_jax.models.registry import get_variant
from convnext_jax.reproducing.page import Result, as_json, lines, markdown, plot
from convnext_jax.reproducing.tables import METRICS, SERVER, TABLES, Published, Row, Table

README = Path(__file__).parent.parent.parent / "README.md"
ROWS = [row for table in TABLES.values() for row in table.rows]
HUB = "hf-hub:"


def row_of(table: str, name: str) -> Row:
    (row,) = [row for row in TABLES[table].rows if row.name == name]
    return row


def values(row: Row) -> dict[str, float]:
    return {said.source: said.value for said in row.published}


# --- The data.


def test_tables():
    assert list(TABLES) == "imagenet1k imagenet22k isotropic v2 robustness ade20k coco".split()
    for key, table in TABLES.items():
        assert table.name == key and table.title
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names) > 0
        assert not [name for name in names if re.search(r"[\s|$,]", name)]
    # 6 of 1K and 5 sizes twice via 22K; table 8 has 5 models on 6 sets, timm 19 on 5 of which 3
    # are in table 8; 6 and 7 models with two metrics.
    counts = [len(table.rows) for table in TABLES.values()]
    assert counts == [6, 10, 3, 18, 5 * 6 + 19 * 5 - 5 * 3, 12, 14]


def test_every_row_is_whole():
    for row in ROWS:
        assert row.metric in METRICS[row.test_set], row
        assert row.published and row.tolerance > 0, row
        sources = [said.source for said in row.published]
        assert len(set(sources)) == len(sources) and all(sources), row
        assert all(0 < said.value < 100 for said in row.published), row
        # The paper's comes first wherever there is one.
        assert not any(source.startswith("paper") for source in sources[1:]), row


def test_names_on_the_hub():
    for row in ROWS:
        if row.hub is None:
            assert row.test_set in ("imagenet", "ade20k", "coco"), row
        elif row.hub.startswith(HUB):
            assert re.fullmatch(r"openmmlab/upernet-convnext-\w+", row.hub.removeprefix(HUB)), row
        else:
            found = PRETRAINED[row.hub]
            assert (found.input_size, found.num_classes) == (row.size, 1000), row
            assert get_variant(found.variant).grn == row.model.startswith("ConvNeXt V2"), row
            assert ("FCMAE" in row.data) == ("fcmae" in row.hub), row
            assert ("22K" in row.data) == ("22k" in row.hub), row


def test_the_size_is_told_by_letter_and_by_name():
    letters = {}
    for row in ROWS:
        weights = row.hub or row.file or ""
        found = re.search(r"(atto|femto|pico|nano|tiny|small|base|xlarge|large|huge)", weights)
        if found:
            letters.setdefault(found[1], set()).add(row.model.rpartition("-")[2])
    assert letters == {
        "atto": {"A"},
        "femto": {"F"},
        "pico": {"P"},
        "nano": {"N"},
        "tiny": {"T"},
        "small": {"S"},
        "base": {"B"},
        "large": {"L"},
        "xlarge": {"XL"},
        "huge": {"H"},
    }


def same_weights(row: Row) -> bool:
    """Whether a row's file is what the project takes it for."""
    assert row.file is not None
    if row.test_set == "ade20k":
        size = re.match(r"upernet_convnext_([a-z]+)_", row.file)[1]
        model = f"upernet_convnext_{size}"
        for name in filter(None, (row.file, row.hub)):
            # Names that are known to be published have a licence, and the side of the windows.
            if upernet_settings.licence_of(name, model, ADE20K_CLASSES) is None:
                return False
            fed, _ = upernet_settings.preprocessing_of(name, model, ADE20K_CLASSES, DIALECTS[0], {})
            if fed.input_size != row.size:
                return False
        return row.hub is None or row.hub.endswith(f"-{size}")
    if row.hub is not None:
        expected = PRETRAINED[row.hub]
        return find_published(row.file, expected.variant, 1000) is expected
    model = re.match(r"convnext_(iso_)?[a-z]+", row.file)[0].replace("_iso_", "_isotropic_")
    found = find_published(row.file, model, 1000)
    return found is not None and found.input_size == row.size


def test_files_are_of_the_same_weights():
    checked = [row for row in ROWS if row.file is not None and row.test_set != "coco"]
    assert len(checked) == len(ROWS) - 14  # COCO
    assert not [row for row in checked if not same_weights(row)]


def test_files_are_where_timm_finds_them():
    """timm lists the authors' files with the same names of weights."""
    from oracles import timm

    checked = 0
    for row in ROWS:
        if row.hub in PRETRAINED:
            assert timm.models.get_pretrained_cfg(row.hub).url == SERVER + str(row.path)
            checked += 1
    assert checked > 100


def test_paths():
    paths = {row.path for row in ROWS}
    assert {
        "convnext_base_1k_224_ema.pth",
        "convnext_xlarge_22k_1k_384_ema.pth",
        "convnextv2/im1k/convnextv2_atto_1k_224_ema.pt",
        "convnextv2/im22k/convnextv2_huge_22k_512_ema.pt",
        "ade20k/upernet_convnext_small_1k_512x512.pth",
        "coco/mask_rcnn_convnext_tiny_1k_3x.pth",
    } <= paths
    assert all((row.file is None) == (row.path is None) for row in ROWS)


def test_the_readme_has_the_same_numbers():
    found = re.findall(
        r"^\| `(convnext_\w+)` \|.*\| ([\d.]+) %(?: \(authors' README: ([\d.]+) %\))? \|$",
        README.read_text(),
        re.M,
    )
    assert len(found) == 7, found
    for name, top1, other in found:
        family, _, size = name.rpartition("_")
        if family == "convnext_isotropic":
            letter = size[0].upper()
            (row,) = [r for r in TABLES["isotropic"].rows if r.model.endswith(f"-{letter}")]
        else:
            row = row_of("imagenet1k", f"{name}.fb_in1k/imagenet")
        assert row.published[0].value == float(top1)
        assert values(row).get("authors' README") == (float(other) if other else None)


# Typed from the papers' tables, apart from the module.
@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        ("imagenet1k", "convnext_small.fb_in1k/imagenet", {"paper, table 1": 83.1, "timm": 83.144}),
        ("imagenet1k", "convnext_large_1k_384/imagenet", {"paper, table 1": 85.5}),
        (
            "imagenet22k",
            "convnext_base.fb_in22k_ft_in1k/imagenet",
            {"paper, table 1": 85.8, "authors' README": 85.82, "timm": 85.814},
        ),
        (
            "imagenet22k",
            "convnext_small.fb_in22k_ft_in1k_384/imagenet",
            {"authors' README": 85.8, "timm": 85.752},
        ),
        (
            "imagenet22k",
            "convnext_xlarge.fb_in22k_ft_in1k_384/imagenet",
            {"paper, table 1": 87.8, "timm": 87.764},
        ),
        ("v2", "convnextv2_nano.fcmae_ft_in1k/imagenet", {"paper of V2": 81.9}),
        ("v2", "convnextv2_large.fcmae_ft_in22k_in1k/imagenet", {"paper of V2": 87.3}),
        ("v2", "convnextv2_tiny.fcmae_ft_in22k_in1k_384/imagenet", {"paper of V2": 85.1}),
        ("v2", "convnextv2_huge.fcmae_ft_in22k_in1k_512/imagenet", {"paper of V2": 88.9}),
        ("robustness", "convnext_tiny.fb_in1k/imagenet_c", {"paper, table 8": 53.2}),
        (
            "robustness",
            "convnext_large.fb_in22k_ft_in1k_384/imagenet_c_bar",
            {"paper, table 8": 29.9},
        ),
        (
            "robustness",
            "convnext_xlarge.fb_in22k_ft_in1k_384/imagenet_a",
            {"paper, table 8": 69.3, "timm": 71.187},
        ),
        (
            "robustness",
            "convnext_base.fb_in1k/imagenet_sketch",
            {"paper, table 8": 38.2, "timm": 38.236},
        ),
        ("robustness", "convnext_base.fb_in1k/imagenet_real", {"timm": 88.377}),
        ("robustness", "convnext_small.fb_in22k_ft_in1k/imagenet_r", {"timm": 57.303}),
        ("robustness", "convnextv2_atto.fcmae_ft_in1k/imagenet_v2", {"timm": 64.26}),
        (
            "ade20k",
            "upernet_convnext_base_22k_640x640/ade20k/miou",
            {"paper, table 7": 52.6, "mmsegmentation, retrained": 52.13},
        ),
        (
            "ade20k",
            "upernet_convnext_tiny_1k_512x512/ade20k/miou_multi_scale",
            {"paper, table 4": 46.7, "mmsegmentation, retrained, in windows": 46.62},
        ),
        (
            "coco",
            "mask_rcnn_convnext_tiny_1k_3x/coco/mask_ap",
            {"paper, table 3": 41.7, "mmdetection, retrained": 41.7},
        ),
        ("coco", "cascade_mask_rcnn_convnext_base_22k_3x/coco/box_ap", {"paper, table 3": 54.0}),
    ],
)
def test_numbers(table, name, said):
    assert values(row_of(table, name)) == said


def test_isotropic_small_has_both_numbers():
    row = TABLES["isotropic"].rows[0]
    assert row.published == (Published(79.7, "paper, table 2"), Published(78.7, "authors' README"))
    assert row.hub is None and "differ" in row.note


def test_timm_is_within_the_tolerance_of_others():
    """As the tolerances say; and where it is not, the rows have a note."""
    outside = set()
    for row in ROWS:
        first, said = row.published[0], values(row)
        if "timm" in said and abs(said["timm"] - first.value) > row.tolerance:
            outside.add(row.name)
            assert "why is not known" in row.note
    assert outside == {
        "convnext_base.fb_in22k_ft_in1k_384/imagenet_a",
        "convnext_large.fb_in22k_ft_in1k_384/imagenet_a",
        "convnext_xlarge.fb_in22k_ft_in1k_384/imagenet_a",
        "convnext_xlarge.fb_in22k_ft_in1k_384/imagenet_r",
    }


def test_the_same_number_is_the_same_in_all_tables():
    """What several tables have of the same weights and test set."""
    seen: dict[str, float] = {}
    for row in ROWS:
        first = row.published[0]
        if first.source.startswith("paper"):
            assert seen.setdefault(row.name, first.value) == first.value, row
    assert "convnext_base.fb_in22k_ft_in1k_384/imagenet" in seen


# --- Results beside it.


def made_up(name: str, value: float, *further: Published, **changes) -> Row:
    row = Row(
        model="A|B",
        data="some data",
        size=224,
        test_set="imagenet",
        metric="top1",
        hub=name,
        file=None,
        published=(Published(value, "paper, table 9"), *further),
        tolerance=0.1,
    )
    return dataclasses.replace(row, **changes)


TABLE = Table(
    "made_up",
    "A table\nof two lines",
    (
        made_up("exact", 80.0),
        made_up("above", 82.1, note="A note."),
        made_up("below", 79.7, Published(78.7, "README")),
        made_up("corrupted", 50.0, test_set="imagenet_c", metric="mce"),
        made_up("absent", 60.0),
        made_up("gone", 61.0),
        made_up("untried", 62.5, published=(Published(62.5, "timm"),)),
    ),
)
RESULTS = {
    "exact/imagenet": Result(80.0, num_examples=50_000),
    # Above by what the tolerance is; in floats by more.
    "above/imagenet": Result(82.2, num_examples=40, remarks=("of 40 | images",)),
    "below/imagenet": Result(78.75),
    "corrupted/imagenet_c": Result(49.8),
    "absent/imagenet": Result(None, "Fetch\nit."),
    "gone/imagenet": Result(None, "Fetch it."),
}
ABOUT = {"device": "some |\nCPU", "date": "2000-01-01"}


def cells(page: str) -> dict[str, list[str]]:
    """The table's lines by the published number; bars that are escaped separate nothing."""
    found = [line for line in page.splitlines() if line.startswith("|")]
    split = [[x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found]
    assert len({len(line) for line in split}) == 1, "a cell is broken"
    assert set(split[1]) == {"---"}
    return {line[4]: line for line in split[2:]}


def test_markdown():
    page = markdown(TABLE, RESULTS, ABOUT)
    assert page.startswith("# A table of two lines\n\n4 of 7 rows were measured, 2 of them within")
    assert "that name no source are of: paper, table 9." in page
    found = cells(page)
    assert len(found) == 7
    assert {line[0] for line in found.values()} == {r"A\|B"}
    assert found["80.0"][3:] == [
        "ImageNet, top-1, percent",
        "80.0",
        "80.000",
        "+0.000",
        "yes (±0.1)",
        "50,000",
    ]
    assert found["82.1"][5:] == ["82.200", "+0.100", "yes (±0.1)", "40"]
    both = found["79.7 (README: 78.7)"]
    assert both[5:] == ["78.750", "-0.950", "no (±0.1); of README: yes", ""]
    # Of what falls the sign is the same: ours minus theirs.
    assert found["50.0"][3] == "ImageNet-C, mCE, lower is better"
    assert found["50.0"][5:] == ["49.800", "-0.200", "no (±0.1)", ""]
    assert found["60.0"][5:] == [""] * 4
    assert "timm: 62.5" in found
    after = page[page.rindex("|\n") :]
    assert "- device: some | CPU\n- date: 2000-01-01" in page
    missing, remarks = page.split("## Not measured\n\n")[1].split("## Remarks\n\n")
    assert missing.strip().splitlines() == [
        "- Fetch it. (`absent/imagenet`, `gone/imagenet`)",
        "- Not tried. (`untried/imagenet`)",
    ]
    assert remarks.strip().splitlines() == [
        "- of 40 | images (`above/imagenet`)",
        "- A note. (`above/imagenet`)",
    ]
    assert after.count("Fetch it.") == 1


def test_markdown_without_results():
    page = markdown(TABLES["coco"], {}, {})
    assert "0 of 14 rows were measured, 0 of them" in page
    assert "- Not tried. (all rows)" in page and "## Remarks" not in page


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_table_can_be_shown(table):
    results = {row.name: Result(row.published[0].value) for row in table.rows}
    found = [line for line in markdown(table, results, {}).splitlines() if line.startswith("| ")]
    assert len(found) == 2 + len(table.rows)
    assert all("+0.000 | yes" in line for line in found[2:])
    entries = as_json(table, results, {})["rows"]
    assert all(entry["within_tolerance"] and entry["difference"] == 0 for entry in entries)
    panels = [axes for axes in plot(table, results).axes if axes.get_title()]
    assert len(panels) == len({row.metric for row in table.rows})
    for weights in ("hub", "/a/folder"):
        listed = lines(table, weights)
        assert max(map(len, listed)) <= 80
        text = "\n".join(listed)
        for row in table.rows:
            assert re.search(rf"^ +{re.escape(row.name)} +{row.published[0].value}$", text, re.M)
            assert ((row.hub if weights == "hub" else row.file) or "(no ") in text


def test_json():
    found = json.loads(json.dumps(as_json(TABLE, RESULTS, ABOUT), allow_nan=False))
    assert (found["name"], found["title"], found["about"]) == (TABLE.name, TABLE.title, ABOUT)
    by_name = {entry["name"]: entry for entry in found["rows"]}
    assert list(by_name) == [row.name for row in TABLE.rows]
    below = by_name["below/imagenet"]
    assert below["published"] == [
        {"value": 79.7, "source": "paper, table 9", "difference": -0.95},
        {"value": 78.7, "source": "README", "difference": 0.05},
    ]
    assert (below["value"], below["difference"], below["within_tolerance"]) == (78.75, -0.95, False)
    assert by_name["above/imagenet"]["within_tolerance"] is True
    assert by_name["above/imagenet"]["remarks"] == ["of 40 | images"]
    assert by_name["above/imagenet"]["note"] == "A note."
    absent = by_name["absent/imagenet"]
    assert absent["missing"] == "Fetch\nit."
    judged = {absent[key] for key in ("value", "difference", "within_tolerance", "num_examples")}
    assert judged == {None}
    assert by_name["exact/imagenet"]["num_examples"] == 50_000


def texts(axes) -> list[str]:
    legend = axes.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_plot():
    figure = plot(TABLE, RESULTS)
    first, second, below_first, below_second = figure.axes
    assert (first.get_title(), second.get_title()) == ("top-1, percent", "mCE, lower is better")
    points = {tuple(c.get_offsets()[0]) for c in first.collections if len(c.get_offsets()) == 1}
    assert {(80.0, 80.0), (82.1, 82.2), (79.7, 78.75)} <= points
    # Those outside are named; the others are not.
    assert texts(below_first) == ["1: below/imagenet"]
    assert texts(below_second) == ["1: corrupted/imagenet_c"]
    # The identity, and the tolerance in both.
    (line,) = first.lines[:1]
    assert line.get_slope() == 1 and line.get_xy1()[0] == line.get_xy1()[1]
    for axes, centre in ((first, 80.0), (below_first, 0.0)):
        spans = [
            span for c in axes.collections if hasattr(c, "get_segments") for span in spans_of(c)
        ]
        assert (80.0, pytest.approx(centre - 0.1), pytest.approx(centre + 0.1)) in spans
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    assert b"<svg" in file.getvalue()


def spans_of(collection) -> list[tuple[float, float, float]]:
    return [(s[0][0], s[0][1], s[1][1]) for s in collection.get_segments() if len(s) == 2]


def test_plot_of_nothing_and_of_one_point():
    figure = plot(TABLE, {"absent/imagenet": Result(None, "Fetch it.")})
    assert not figure.axes
    assert "None of the 7 rows" in " ".join(text.get_text() for text in figure.texts)
    figure = plot(TABLE, {"exact/imagenet": Result(80.05)})
    assert len(figure.axes) == 2 and figure.axes[0].get_xlim() == (79, 81)


@pytest.mark.parametrize("show", [markdown, as_json, lambda t, r, a: plot(t, r)])
def test_a_result_of_no_row_is_refused(show):
    with pytest.raises(ValueError, match="exact/imagenette.*no rows of `made_up`"):
        show(TABLE, {"exact/imagenette": Result(80.0)}, {})


@pytest.mark.parametrize("value", [(None,), (80.0, "Fetch it."), (float("nan"),)])
def test_a_result_is_a_number_or_says_why_not(value):
    with pytest.raises(ValueError, match="a result must have a finite `value`"):
        Result(*value)
