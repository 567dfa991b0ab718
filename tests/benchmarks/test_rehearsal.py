"""The rehearsal's parts at toy size: what they must see, and that the page has the results."""

import json
import sys

import numpy as np
import pytest

from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.rehearsal import standins
from benchmarks.rehearsal.measures import slope
from benchmarks.rehearsal.parts import PARTS
from benchmarks.rehearsal.runs import Broken, Run
from benchmarks.rehearsal.stage import Size, Stage
from benchmarks.rehearsal.table import table
from convnext_jax.data.sources import open_source

TOY = Size(
    {
        "imagenet1k": standins.Records(
            "imagenet2012", "5.1.0", 10, {"train": (803, 7), "validation": (50, 3)}
        ),
        "imagenet22k": standins.Records("imagenet22k", "1.0.0", 30, {"train": (50_100, 40)}),
        "folder": standins.Folder("folder", 5, {"train": 303, "val": 50}),
    },
    steps=120,
    warmup=20,
    batch=8,
    sample_seconds=0.001,
    late_batch=32,
    late_step=7_000,
    processes=3,
    evaluated=50,
    xl=(
        "configs/imagenet22k.py:base",
        "--config.model.dims=(8,8,8,512)",
        "--config.model.depths=(1,1,1,1)",
        "--config.data.image_size=32",
    ),
    middle=1,
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"), TOY)


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("part", [part for part in PARTS if not part.endswith("-32")])
def test_a_part(part, stage):
    result = PARTS[part](stage)
    assert result.get("left_behind", 0) == 0
    written = table({part: result | {"machine": "this"}})
    assert written.startswith("On this:") and len(written.splitlines()) > 1


def test_records_are_those_that_tfds_would_have(tmp_path):
    dataset = TOY.datasets["imagenet1k"]
    standins.write(dataset, tmp_path)
    standins.write(dataset, tmp_path)  # is there already
    for split, (count, shards) in dataset.splits.items():
        source = open_source("imagenet2012", split, tmp_path)
        assert (len(source), source.num_classes) == (count, 10)
        labels = [source[index][1] for index in range(count)]
        assert set(labels) == set(range(10))
        assert source[count - 1][0].size in ((64, 48), (48, 64))
        place = tmp_path / "imagenet2012" / "5.1.0"
        assert len(list(place.glob(f"imagenet2012-{split}.array_record-*"))) == shards


def test_shards_of_one_length_repeat(tmp_path):
    dataset = standins.Records("imagenet22k", "1.0.0", 5, {"train": (400, 100)})
    standins.write(dataset, tmp_path)
    shards = list((tmp_path / "imagenet22k" / "1.0.0").glob("*.array_record-*"))
    assert len(shards) == 100 and len({path.stat().st_ino for path in shards}) == 32
    source = open_source("imagenet22k", "train", tmp_path)
    assert len({source[index][1] for index in range(400)}) == 5


def test_a_folder_has_its_files(tmp_path):
    standins.write(TOY.datasets["folder"], tmp_path)
    for split, count in TOY.datasets["folder"].splits.items():
        source = open_source("folder", split, tmp_path / "folder")
        assert (len(source), source.num_classes) == (count, 5)
        source[count - 1]


def test_half_a_dataset_is_not_taken_for_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RuntimeError, match="complete or not there"):
        standins.write(TOY.datasets["folder"], tmp_path)


def test_a_slope_is_found_within_its_noise():
    rng = np.random.default_rng(0)
    steps = np.arange(500, 2000, 5)
    flat = slope(steps, 1e9 + 1e6 * rng.standard_normal(len(steps)))
    assert abs(flat["per_1000_steps"]) < flat["noise"]
    rising = slope(steps, 1e9 + 3e3 * steps + 1e6 * rng.standard_normal(len(steps)))
    # Three times the two standard errors that the noise is.
    assert abs(rising["per_1000_steps"] - 3e6) < 3 * rising["noise"] < 3e6
    with pytest.raises(ValueError, match="30 samples"):
        slope(steps[:29], steps[:29])


CHILD = "import subprocess, sys, time; subprocess.Popen(['sleep', '60'], start_new_session=True)"


def test_who_is_left_behind_is_seen_and_then_killed(tmp_path):
    command = [sys.executable, "-c", f"{CHILD}; sys.exit(3)"]
    with Run(command, tmp_path, {}) as run:
        assert run.wait(30) == [3]
        assert run.left_behind(seconds=0.2) == 1
        (orphan,) = run.seen()
        assert orphan.role == "other" and orphan.files >= 3 and 0 < orphan.pss <= orphan.rss
    assert not run.seen()


def test_a_run_that_ends_early_is_broken_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('error: no such thing')"]
    with Run(command, tmp_path, {}) as run, pytest.raises(Broken, match="1: error: no such thing"):
        run.wait_until_printed("first step", 30)


def test_the_limit_of_open_files_is_the_commands(tmp_path):
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    with Run([sys.executable, "-c", code], tmp_path, {}, files=77) as run:
        run.wait(30)
        assert run.printed() == "77\n"


def test_the_page_has_the_committed_results():
    results = json.loads((RESULTS / "rehearsal.json").read_text())
    assert not [name for name, result in results.items() if "broken" in result]
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert page == rewrite(page, {"rehearsal": table(results)})
