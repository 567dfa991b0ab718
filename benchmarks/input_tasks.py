"""What rows of segmentation and detection cost one core: `python -m benchmarks.input_tasks`.

Scenes of COCO's and ADE20K's usual size, of parts of scikit-learn's photographs, go through reading
and the transforms of the papers' configs; for detection also what is done with 100 detections of an
image after the model. Processor time in one thread, the median of rounds, so that what else runs on
the machine matters less. Writes `benchmarks/results/input_tasks.json`; `planning/whole_run.py` has
half of it, rounded, for a hyperthread.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.input import photographs
from benchmarks.readme import RESULTS, ROOT, machine
from convnext_jax.config import Config
from convnext_jax.config_files import load_config
from convnext_jax.constants import ADE20K_CLASSES, COCO_CLASSES
from convnext_jax.data.annotations import decode_annotation
from convnext_jax.data.coco_folder import CocoFolder
from convnext_jax.data.decode import decode
from convnext_jax.detection.records import records
from convnext_jax.wings import wing_of

FILE = RESULTS / "input_tasks.json"
IMAGES = 24
# Of an image of COCO, on average; points of a polygon; detections of an image, at most.
OBJECTS, POINTS, DETECTIONS = 7, 30, 100
SIDE = 28  # of a predicted mask
# Objects' sides are these parts of the image's: log-uniform.
SIDES = (0.05, 0.6)


def config_of(name: str) -> Config:
    """A published recipe."""
    return load_config(str(ROOT / "configs" / name), [])


def boxes_in(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Boxes (x, y, width, height) in pixels, within an image."""
    least, most = np.log(SIDES)
    sides = np.exp(rng.uniform(least, most, (count, 2))) * (width, height)
    return np.concatenate([rng.uniform(0, (width, height) - sides), sides], axis=1)


def write_coco(root: Path) -> Path:
    """A folder of images with ellipses for objects; returns the file of annotations."""
    rng, around = np.random.default_rng(0), np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 1 + i, "name": f"class {i}"} for i in range(COCO_CLASSES)]
    (root / "train").mkdir()
    for number, file in enumerate(photographs(IMAGES, mixed=False)):
        image = Image.open(io.BytesIO(file)).resize((640, 480))
        image.save(root / "train" / f"{number}.jpg", quality=93)
        content["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480}
        )
        for x, y, width, height in boxes_in(rng, OBJECTS, 480, 640):
            points = [
                x + width * (0.5 + np.cos(around) / 2),
                y + height * (0.5 + np.sin(around) / 2),
            ]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(1, COCO_CLASSES + 1)),
                    "bbox": [x, y, width, height],
                    "area": width * height * np.pi / 4,
                    "iscrowd": 0,
                    "segmentation": [np.stack(points, 1).round(2).ravel().tolist()],
                }
            )
    (root / "train.json").write_text(json.dumps(content))
    return root / "train.json"


def detection(root: Path) -> Mapping[str, Callable[[int], Any]]:
    """What is done for an image, by what it is for."""
    config = config_of("coco.py:mask_tiny")
    wing, data = wing_of(config.model.name), CocoFolder(write_coco(root), root, "train")
    task = wing.task(config, COCO_CLASSES, 1, None, None)
    evaluated = wing.evaluation(task.model, data).examples
    rng = np.random.default_rng(1)
    boxes = boxes_in(rng, DETECTIONS, 800, 1067).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    found = SimpleNamespace(
        boxes=boxes[None],
        scores=np.linspace(1, 0, DETECTIONS, dtype=np.float32)[None],
        labels=rng.integers(0, COCO_CLASSES, (1, DETECTIONS)),
        masks=rng.random((1, DETECTIONS, SIDE, SIDE), np.float32),
    )
    row = {
        "index": np.zeros(1, int),
        "size": np.array([[800, 1067]]),
        "original": np.array([[480, 640]]),
    }
    return {
        "training": lambda i: task.examples(data[i], np.random.default_rng(i)),
        "evaluation": lambda i: evaluated(data[i]),
        "detections": lambda i: records(row, found),
    }


def segmentation(root: Path) -> Mapping[str, Callable[[int], Any]]:
    """Likewise."""
    config = config_of("ade20k.py:tiny")
    wing = wing_of(config.model.name)
    task = wing.task(config, ADE20K_CLASSES, 2, None, None)
    evaluated = task.evaluation.examples
    rng, files = np.random.default_rng(0), []
    for photograph in photographs(IMAGES, mixed=False):
        image, annotation = io.BytesIO(), io.BytesIO()
        Image.open(io.BytesIO(photograph)).resize((683, 512)).save(image, "JPEG", quality=93)
        areas = Image.fromarray(rng.integers(0, ADE20K_CLASSES, (12, 16), np.uint8))
        areas.resize((683, 512), Image.Resampling.NEAREST).save(annotation, "PNG")
        files.append((image.getvalue(), annotation.getvalue()))

    def read(i: int) -> tuple[Image.Image, np.ndarray]:
        image, annotation = files[i]
        return decode(image, str(i)), np.asarray(decode_annotation(annotation, str(i)))

    return {
        "training": lambda i: task.examples(read(i), np.random.default_rng(i)),
        "evaluation": lambda i: evaluated(read(i)),
    }


def images_per_second(run: Callable[[int], Any], rounds: int) -> float:
    """Of one core."""
    speeds = []
    for number in range(rounds + 1):
        began = time.process_time()
        for i in range(IMAGES):
            run(i)
        if number:  # the first fills caches
            speeds.append(IMAGES / (time.process_time() - began))
    return statistics.median(speeds)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_tasks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="passes over the images")
    rounds = parser.parse_args().rounds
    results: dict[str, Any] = {}
    for task in (segmentation, detection):
        with tempfile.TemporaryDirectory() as folder:
            runs = task(Path(folder))
            results[task.__name__] = {n: images_per_second(run, rounds) for n, run in runs.items()}
        print(task.__name__, results[task.__name__], flush=True)
    FILE.write_text(json.dumps(results | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
