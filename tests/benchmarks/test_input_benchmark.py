"""The benchmark of the input measures what it says, and writes it."""

import io
import json

import pytest
from PIL import Image

from benchmarks import input as benchmark
from convnext_jax.config import default_config

# Tests have eight devices, over which a batch must divide.
TINY = (
    "--images=8",
    "--rounds=1",
    "--image-size=64",
    "--batch=8",
    "--steps=1",
)


def test_photographs_are_jpegs_of_the_sizes_that_are_said():
    for mixed in (False, True):
        files = benchmark.photographs(30, mixed=mixed)
        assert len(set(files)) == 30
        images = [Image.open(io.BytesIO(file)) for file in files]
        assert {image.format for image in images} == {"JPEG"}
        sizes = {image.size for image in images}
        if mixed:
            assert len(sizes) == 30
            assert min(min(size) for size in sizes) >= 200 * 9 / 16 - 1
            assert 1000 < max(max(size) for size in sizes) <= 1500
        else:
            assert sizes == {(500, 375)}
            assert 50_000 < sum(map(len, files)) / 30 < 90_000


def small_config():
    config = default_config()
    config.model.update(depths=(1,), dims=(4,))
    return config


@pytest.mark.slow
def test_a_tiny_run_writes_every_field(tmp_path, monkeypatch, capsys):
    document = (benchmark.ROOT / "docs" / "performance.md").read_bytes()
    monkeypatch.setattr(benchmark, "default_config", small_config)
    monkeypatch.setattr(benchmark, "READERS", ((0, 1), (0, 2)))
    waits = {"median": 0.01, "mean": 0.02, "largest": 0.03}
    monkeypatch.setattr(benchmark, "measure_digits", lambda: {"data_wait_fraction": waits})
    benchmark.main([*TINY, f"--out={tmp_path}"])
    (path,) = tmp_path.iterdir()
    results = json.loads(path.read_text())
    assert path.name == f"input-{results['device']}.json"
    assert {"hardware", "measured", "versions", "images", "rounds", *benchmark.PARTS} <= {*results}
    assert {*results["transforms"]} == {"500x375", "mixed sizes"}
    for kinds in results["transforms"].values():
        assert kinds.pop("mean_bytes") > 0
        assert {*kinds} == {"training, the whole recipe", "training, crop and flip", "evaluation"}
        for found in kinds.values():
            speeds = found["images_per_second"]
            assert {*speeds} == {"ours", "timm", "timm, uint8"}
            # One round: the median of ratios is the ratio of the medians.
            ratio = speeds["ours"] / speeds["timm"]
            assert found["ratio to timm"] == pytest.approx(ratio)
    assert [(r["workers"], r["threads"]) for r in results["pipeline"]] == [(0, 1), (0, 2)]
    assert all(r["images_per_second"] > 0 for r in results["pipeline"])
    training = results["training"]
    speeds = training["images_per_second"]
    assert training["input_fraction"] == pytest.approx(1 - speeds["decoding"] / speeds["memory"])
    printed = capsys.readouterr().out
    assert printed.count("| training, the whole recipe |") == 2
    assert "2.00%" in printed
    # With `--out`, the document is left alone.
    assert (benchmark.ROOT / "docs" / "performance.md").read_bytes() == document
    # A part that is measured alone leaves the others as they are.
    waits["mean"] = 0.5
    benchmark.main([*TINY, f"--out={tmp_path}", "--parts=digits"])
    again = json.loads(path.read_text())
    assert again["digits"]["data_wait_fraction"]["mean"] == 0.5
    assert again["pipeline"] == results["pipeline"]


@pytest.mark.slow
def test_digits_report_how_long_they_waited():
    small = (
        "--config.model.depths=(1,)",
        "--config.model.dims=(4,)",
        "--config.optim.warmup_epochs=0.0",
    )
    short = ("--config.num_steps=24", "--config.log_every_steps=12")
    waits = benchmark.measure_digits(*small, *short)["data_wait_fraction"]
    assert 0 <= waits["median"] <= waits["largest"] <= 1


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--parts=transforms,decoding"])
    assert "must be some of" in capsys.readouterr().err


def test_tables_of_committed_results_are_in_the_document():
    document = (benchmark.ROOT / "docs" / "performance.md").read_text()
    part = document.partition("<!-- input -->\n")[2].partition("\n<!-- end -->")[0]
    assert part == benchmark.tables()
