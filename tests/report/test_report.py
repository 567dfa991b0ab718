"""Reports: what they say, that names stay names, and how a browser shows them."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import tracemalloc

import numpy as np
import pytest
import sklearn.metrics
from classification.small import PHOTOGRAPHS
from PIL import Image
from random_models import random_params

from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.classification.predictor import Predictor
from convnext_jax.config import from_dict
from convnext_jax.data.sources import open_source
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.report import __main__ as command
from convnext_jax.report import page
from convnext_jax.report.curves import Curve, chart
from convnext_jax.report.mistakes import Findings, Mistake, find_mistakes, matrix, per_class

pytestmark = pytest.mark.usefixtures("programs_are_kept")

# Nothing of these may become a part of the page; the second is as wide as a name gets.
NAMES = ("<img src=x onerror=alert(1)>", "w" * 90, "$a_1$ & \"b\" 'c'")
SPEC = ModelSpec(
    "convnext_atto", 3, {"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16), "kernel_size": 3}
)
FEEDING = Preprocessing(input_size=64, crop_fraction=1.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of images, for each class."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 2), ("val", 9)):
        for label, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                box = (i * 40 + label * 11, i * 9, i * 40 + label * 11 + 120, i * 9 + 100)
                PHOTOGRAPHS[label % 2].crop(box).save(folder / f"{i}.png")
    (root / "val" / NAMES[0] / "broken.png").write_bytes(b"nothing")
    return root


def record(step, **values):
    return {"step": step, "epoch": step / 10, **values}


def write_run(workdir, images, *, steps=40, lr=0.001, seed=0):
    """A run's files."""
    values = {
        "num_epochs": steps / 10,
        "model": {"name": "convnext_atto"},
        "data": {
            "name": "folder",
            "dir": str(images),
            "train_split": "train",
            "eval_split": "val",
            "global_batch": 6,
            "on_error": "skip",
        },
        "optim": {"lr": lr},
    }
    config = dataclasses.asdict(from_dict(values))
    params = random_params(SPEC.abstract_params(), seed)
    described = ModelDescription(SPEC, FEEDING, tuple(sorted(NAMES))).to_json()
    checkpoints = Checkpoints(workdir / "checkpoints", best_metric="eval_params_top1")
    checkpoints.save(steps, {"params": params}, described | {"config": config, "metric": "top1"})
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(config))
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            record(
                step,
                loss=2 / step,
                learning_rate=lr,
                gradient_norm=1.0,
                images_per_second=100.0,
                data_wait_fraction=0.1,
            )
        )
        if step % 10 == 0:
            scores = {"loss": 1.0, "top1": step / 2 / steps, "top5": 1.0}
            rows.append(record(step, **{f"eval_params_{k}": v for k, v in scores.items()}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return params


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    workdir.mkdir()
    write_run(workdir, images)
    return workdir


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        command.main([str(argument) for argument in arguments])
    return ended.value.code


class Reader(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def written(workdir):
    assert run(workdir) == 0
    return (workdir / "report.html").read_text()


def test_the_page_says_what_the_run_says(written, workdir, images):
    read = Reader(written)
    texts = " ".join(read.texts)
    for words in ("convnext_atto on folder", "50.00%", "top-1", "Surest mistakes", "optim.lr"):
        assert words in texts, words
    # The names, as they are, in the tables and under the pictures.
    for name in NAMES:
        assert name in texts
    source = open_source("folder", "val", images)
    expected = sklearn_of(source)
    rows = re.findall(r"<tr><th>.*?</tr>", written[written.index('class="wide matrix"') :])
    counts = [
        [int(cell or 0) for cell in re.findall(r"<td[^>]*>(\d*)</td>", row)] for row in rows[1:4]
    ]
    assert counts == expected.tolist() and expected.sum() == 27
    assert "27 of 28 examples of `val`" in texts


def sklearn_of(source):
    """By one example after the other, and scikit-learn."""
    model = SPEC.with_params(random_params(SPEC.abstract_params(), 0))
    predictor = Predictor(model, FEEDING)
    labels, found = [], []
    for i in range(len(source)):
        try:
            image, label = source[i]
        except ValueError:
            continue
        (prediction,) = predictor.predict([image], 1)
        labels.append(label)
        found.append(prediction.labels[0])
    return sklearn.metrics.confusion_matrix(labels, found, labels=range(3))


def test_nothing_of_a_users_becomes_part_of_the_page(written):
    read = Reader(written)
    assert not [tag for tag, attributes in read.tags if tag in ("script", "iframe", "object")]
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            # Nothing is fetched from anywhere.
            assert value.startswith(("data:", "#")), (tag, value)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_surest_mistakes_come_first(images):
    source = open_source("folder", "val", images)
    model = ModelDescription(SPEC, FEEDING, tuple(sorted(NAMES)))
    params = random_params(SPEC.abstract_params(), 0)
    found = find_mistakes(model, params, {}, source, examples=1000, most=4)
    chances = [mistake.probability for mistake in found.mistakes]
    assert len(chances) == 4 and chances == sorted(chances, reverse=True)
    predictor = Predictor(SPEC.with_params(params), FEEDING)
    for mistake in found.mistakes:
        image, label = source[mistake.index]
        (prediction,) = predictor.predict([image], 1)
        assert (mistake.label, mistake.found) == (label, prediction.labels[0])
        assert label != mistake.found
        assert mistake.probability == pytest.approx(prediction.probabilities[0], rel=1e-4)
        assert mistake.explained.size == mistake.seen.size == (64, 64)
    # Evenly over the split, not its first class alone.
    some = find_mistakes(model, params, {}, source, examples=7)
    counts = matrix(some.pairs, 3).sum(1)
    assert (counts >= 2).all() and counts.sum() <= 7
    assert some.total == 28


def as_pairs(confusion):
    return {place: int(count) for place, count in np.ndenumerate(confusion) if count}


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, 5, (2, 300))
    confusion = sklearn.metrics.confusion_matrix(labels, found)
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(labels, found)
    scores = per_class(as_pairs(confusion), 5)
    np.testing.assert_allclose(scores["precision"], precision)
    np.testing.assert_allclose(scores["recall"], recall)
    np.testing.assert_allclose(scores["f1"], f1)
    np.testing.assert_array_equal(matrix(as_pairs(confusion), 5), confusion)
    empty = per_class({(0, 0): 3}, 2)
    assert np.isnan(empty["recall"][1]) and np.isnan(empty["precision"][1])


def test_several_runs_side_by_side(workdir, images, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    write_run(second, images, steps=30, lr=0.5)
    file = tmp_path / "both.html"
    assert run(workdir, second, "--output", file) == 0
    texts = " ".join(Reader(file.read_text()).texts)
    for words in ("first", "second", "optim.lr", "0.001", "0.5", "What differs", "first: training"):
        assert words in texts, words
    assert "optim.b1" not in texts  # the same in both


def test_a_page_without_its_dataset(tmp_path, capsys):
    write_run(tmp_path, tmp_path / "gone \udce9")  # a name of a file that is no text
    assert run(tmp_path) == 0
    assert "warning: examples could not be looked at: " in capsys.readouterr().err
    written = (tmp_path / "report.html").read_text()
    assert "Curves" in written and "examples could not be looked at" in written


def test_checkpoints_that_are_elsewhere(images, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_run(workdir, images)
    (workdir / "checkpoints").rename(tmp_path / "elsewhere")
    config = json.loads((workdir / "config.json").read_text())
    config["checkpoint"]["dir"] = str(tmp_path / "elsewhere")
    (workdir / "config.json").write_text(json.dumps(config))
    assert run(workdir, "--output", tmp_path / "report.html") == 0
    assert "Surest mistakes" in (tmp_path / "report.html").read_text()


def test_large_runs_and_many_classes_stay_small():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (384, 384, 3), np.uint8))
    names = tuple(f"class {i}" for i in range(1000))
    confusion = rng.integers(0, 50, (1000, 1000))
    wrong = [Mistake(i, i, i + 1, 0.9, noise, noise) for i in range(12)]
    found = Findings(names, as_pairs(confusion), wrong, "validation", 50_000)
    curve = Curve("training", np.arange(300_000), rng.normal(size=300_000))
    drawn = [chart(f"chart {i}", "epoch", [curve]) for i in range(6)]
    text = page.document("large", [page.charts(drawn), page.classes(found), page.mistakes(found)])
    assert len(text) < 5 * 2**20


def test_as_many_classes_as_imagenet_22k_has_take_no_gigabytes():
    names = tuple(f"class {i}" for i in range(21_841))
    found = Findings(names, {(3, 4): 2, (5, 5): 1, (3, 3): 1}, [], "validation", 9)
    tracemalloc.start()
    text = page.classes(found)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert "class 4 (2)" in text and "Confusion matrix" not in text


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf"), None, 2.0]])
def test_curves_that_are_no_lines(values):
    drawn = chart("loss", "epoch", [Curve("training", range(len(values)), values)])
    assert drawn.startswith("<svg") and "var(--ink)" in drawn and "#010203" not in drawn


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["missing"], "missing must be the workdir of a run"),
        (["RUN", "--examples", "-1"], "`--examples` (=-1) must not be negative"),
        (["RUN", "--output", "no/where.html"], "`--output` (=no/where.html) must be a file"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, sentence, workdir, capsys):
    arguments = [workdir if argument == "RUN" else argument for argument in arguments]
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


def browse(file, folder, *flags):
    """Opens a page in Chromium without a window; returns what it prints and logs."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width, dark", [(390, False), (390, True), (1280, False)])
def test_a_browser_shows_it(written, tmp_path, width, dark):
    file, shot = tmp_path / "report.html", tmp_path / "shot.png"
    # Says how wide the page is, in a copy; the page itself has no scripts.
    measured = (
        "<script>onload = () => { document.title = 'wide ' +"
        " document.documentElement.scrollWidth + ' of ' + innerWidth; }</script></body>"
    )
    file.write_text(written.replace("</body>", measured))
    flags = [f"--window-size={width},2000"]
    flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    done = browse(file, tmp_path, *flags, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    wide, window = map(int, re.search(r"<title>wide (\d+) of (\d+)</title>", done.stdout).groups())
    assert wide <= window, (wide, window)  # no scrolling sideways
    done = browse(file, tmp_path, *flags, f"--screenshot={shot}", "--hide-scrollbars")
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("L"), np.float32)
    back = np.median(pixels)
    assert back < 60 if dark else back > 240
    # Text, curves and pictures: a page that failed is of one colour.
    assert (abs(pixels - back) > 60).mean() > 0.02
