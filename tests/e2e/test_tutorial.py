"""docs/tutorial.md, command by command, with a few digits for photos and a small model."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from e2e import commands
from PIL import Image
from sklearn.datasets import load_digits

import convnext_jax

PAGE = (commands.ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
CLASSES = ("zero", "one", "two")
SIZES = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 32), "kernel_size": 3}
# What a few images of 32 pixels need, and a CPU.
SMALLER = """
    config.model.depths, config.model.dims = {depths}, {dims}
    config.model.kernel_size = {kernel_size}
    config.num_epochs, config.eval_every_epochs, config.optim.warmup_epochs = 20.0, 20.0, 1.0
    config.data.image_size, config.data.global_batch, config.data.workers = 32, 16, 0
    config.augment.erasing, config.optim.lr, config.report_examples = 0.0, 5e-3, 20
    return config
"""


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory, folders):
    """A folder as the page has it: the archive, the config, and weights to start from."""
    place = tmp_path_factory.mktemp("tutorial")
    digits = load_digits()
    for number, name in enumerate(CLASSES):
        (place / "photos" / name).mkdir(parents=True)
        for i, pixels in enumerate(digits.images[digits.target == number][:25]):
            image = Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32))
            image.save(place / "photos" / name / f"{i:02}.jpg", quality=95)
    (place / "downloads").mkdir()
    shutil.make_archive(str(place / "downloads" / "photos"), "zip", place, "photos")
    shutil.rmtree(place / "photos")
    start = convnext_jax.create_model("convnext_atto", num_classes=7, **SIZES)
    convnext_jax.save_pretrained(start, place / "start", "convnext_atto", **SIZES)
    (config,) = blocks("python")
    config = config.replace("hf-hub:timm/convnext_atto.d2_in1k", str(place / "start"))
    (place / "photos.py").write_text(config.replace("    return config\n", SMALLER.format(**SIZES)))
    (place / "configs").symlink_to(commands.ROOT / "configs")
    return place


def test_the_page_runs(place, folders):
    steps = blocks("bash")
    assert len(steps) == 10
    python = Path(sys.executable).parent
    env = commands.environment(*folders) | {
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(commands.ROOT),
    }
    printed = []
    for step in steps:
        command = ["bash", "-euc", step]
        done = subprocess.run(
            command, env=env, cwd=place, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, step + done.stdout + done.stderr
        printed.append(done.stdout)
    checked, probed, tuned, longer = printed[1], printed[2], printed[3], printed[5]
    assert "`.[:80%]`: 60 images, 0 of them cannot be read; 3 classes with 20 to 20" in checked
    assert "frozen (backbone)" in probed and "the head is new, for 3 classes" in probed
    assert "frozen" not in tuned and "starting from" in tuned
    assert "the schedule now ends after step 120, and ended after step 60" in longer
    assert (place / "both.html").stat().st_size > 10_000
    with (place / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["examples"]) for row in rows] == [
        (name, "5") for name in sorted(CLASSES)
    ]
    tables = []
    for name in ("predictions.csv", "onnx.csv"):
        with (place / name).open(newline="") as file:
            tables.append({row["image"]: row for row in csv.DictReader(file)})
    assert tables[0].keys() == tables[1].keys() and len(tables[0]) == 75
    for image, row in tables[0].items():
        assert row["error"] == ""
        # Another run-time, and folded.
        found, other = (float(table[image]["probability"]) for table in tables)
        assert found == pytest.approx(other, abs=1e-4)
    right = [row["class"] == Path(image).parent.name for image, row in tables[0].items()]
    # Digits of 0, 1 and 2, most of which it was trained on.
    assert np.mean(right) > 0.9
    assert len(list((place / "seen").rglob("*_cam.png"))) == 75
    assert {p.name for p in (place / "out" / "timm").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    # Also where sizes are no published model's.
    again = convnext_jax.load(str(place / "out" / "timm"))
    assert again.class_names == tuple(sorted(CLASSES))
    assert again.preprocessing.input_size == 32
