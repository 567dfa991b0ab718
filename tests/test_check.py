"""`python -m convnext_jax.check`: everything that is wrong with a dataset, at once."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from convnext_jax import check

CONFIG = ("--config", "configs/finetune_folder.py:atto", "--config.data.workers=0")
CONFIG += ("--config.data.global_batch=8",)


def picture(number, size=(6, 5)):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture
def root(tmp_path):
    number = 0
    for split, count in (("train", 40), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                number += 1
                picture(number).save(tmp_path / split / name / f"{i:02}.png")
    return tmp_path


def run(capsys, root, *arguments):
    with pytest.raises(SystemExit) as stop:
        check.main([*CONFIG, f"--config.data.dir={root}", *arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_a_dataset_without_fault(root, capsys):
    picture(1000, (20, 10)).save(root / "train" / "dog" / "40.png")
    status, out, err = run(capsys, root)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "`train`: 81 images, 0 of them cannot be read; 2 classes with 40 to 41 images each",
        "  sizes, width x height: smallest 6 x 5, median 6 x 5, largest 20 x 10",
        "`val`: 6 images, 0 of them cannot be read; 2 classes with 3 to 3 images each",
        "  sizes, width x height: smallest 6 x 5, median 6 x 5, largest 6 x 5",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_wrong_is_said_at_once(workers, root, capsys):
    (root / "train" / "cat" / "07.png").write_bytes(b"no image")
    (root / "val" / "dog" / "01.png").write_bytes(b"nor this")
    picture(500).save(root / "train" / "cat" / "x.png")
    picture(500).save(root / "train" / "dog" / "x.bmp")  # the same pixels, another class
    picture(500).save(root / "val" / "dog" / "x.png")
    status, out, err = run(capsys, root, f"--config.data.workers={workers}", "--json")
    assert status == 1
    found = json.loads(out)
    assert err.splitlines() == [f"error: {problem}" for problem in found["problems"]]
    assert [p.partition(" cannot be decoded")[0] for p in found["problems"]] == [
        f"the image {root}/train/cat/07.png",
        f"the image {root}/val/dog/01.png",
    ]
    assert found["splits"][0]["classes"] == {"cat": 40, "dog": 41}
    assert found["splits"][0]["unreadable"] == 1
    cat, dog = root / "train" / "cat" / "x.png", root / "train" / "dog" / "x.bmp"
    fox = root / "val" / "dog" / "x.png"
    assert found["warnings"] == [
        f"dataset `folder`, split `train` has 1 image twice: {cat} and {dog}",
        f"dataset `folder`, split `train` has 1 image with two classes: {cat} and {dog}",
        "dataset `folder`, split `train` also has 1 image of dataset `folder`, split `val`, whose"
        f" score says less for it: {cat} and {fox}",
        f"1 image of both splits with two classes: {cat} and {fox}",
    ]
    status, out, err = run(capsys, root, "--config.data.on_error=skip")
    assert (status, err) == (0, "")
    assert f"warning: the image {root}/train/cat/07.png cannot be decoded" in out


def test_what_a_run_would_stop_at(root, capsys):
    skip = "--config.data.on_error=skip"
    for name in ("00.png", "01.png", "02.png"):
        (root / "train" / "cat" / name).write_bytes(b"no image")
    status, _, err = run(capsys, root, skip, "--config.data.max_skipped=2")
    assert status == 1 and "has 3 images that cannot be read" in err and "(=2)" in err
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    status, _, err = run(capsys, root, skip)
    assert status == 1 and err.count("\n") == 6
    status, _, err = run(capsys, root, "--config.data.global_batch=128")
    assert status == 1 and "`data.global_batch` (=128)" in err


def test_classes_and_splits(root, capsys):
    (root / "val" / "dog").rename(root / "val" / "fox")
    status, _, err = run(capsys, root)
    assert status == 1 and "only train has dog; only val has fox" in err
    status, _, err = run(capsys, root, "--config.data.eval_split=vla")
    assert status == 2 and "did you mean val" in err and err.count("\n") == 1
    status, _, err = run(capsys, root, "--config.data.dri=x")
    assert status == 2 and "unknown config key `data.dri`" in err


def test_parts_of_one_folder_share_no_image(root, capsys):
    halves = ("--config.data.train_split=train[:50%]", "--config.data.eval_split=train[50%:]")
    status, out, _ = run(capsys, root, *halves)
    assert status == 0 and "warning" not in out and out.count(": 40 images, 0") == 2


def test_masks(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(3):
            picture(i + 10 * (split == "val")).save(tmp_path / "images" / split / f"{i}.png")
            labels = np.zeros((5, 6), np.uint8)
            labels[: i + 1, 0] = 1
            labels[4] = 255
            cv2.imwrite(str(tmp_path / "annotations" / split / f"{i}.png"), labels)
    Image.new("L", (6, 5), 7).save(tmp_path / "annotations" / "val" / "2.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "annotations" / "train" / "0.png")
    (tmp_path / "annotations" / "train" / "1.png").write_bytes(b"no image")
    config = ("--config", "configs/segment_folder.py:convnext_atto", "--config.data.workers=0")
    config += ("--config.data.global_batch=2", "--config.optim.warmup_epochs=0")
    with pytest.raises(SystemExit) as stop:
        check.main([*config, f"--config.data.dir={tmp_path}", "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1
    found = json.loads(out)
    problems = found["problems"]
    assert err == "".join(f"error: {problem}\n" for problem in problems)
    places = ("annotations/train/0.png", "annotations/train/1.png", "annotations/val/2.png")
    assert len(problems) == 3
    assert all(place in problem for place, problem in zip(places, problems, strict=True))
    training, held_out = found["splits"]
    # Of the one that is left 24 pixels have a class, 3 of them `sea`'s.
    assert training["pixels"] == {"sky": round(21 / 24, 6), "sea": round(3 / 24, 6)}
    assert training["classes"] == {"sky": 1, "sea": 1} and training["unreadable"] == 2
    assert held_out["unreadable"] == 1
