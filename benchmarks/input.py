"""Measures what input costs: `python -m benchmarks.input [--images 200] [--rounds 5]`.

1. transforms: images a second of one core, ours beside timm's transforms on the same JPEG files.
2. pipeline: images a second of the training pipeline, by worker processes and threads.
3. training: steps on images that are decoded meanwhile, beside steps on batches in memory.
4. digits: the share of the time in which `configs/digits.py`, with one worker, waits for data.

The JPEGs are parts of scikit-learn's two photographs. Writes `benchmarks/results/input-DEVICE.json`
and the table of docs/performance.md.
"""

import argparse
import datetime
import importlib.metadata
import io
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.features
import sklearn.datasets
from PIL import Image, ImageOps

from benchmarks.check import this_device
from benchmarks.models import import_timm
from benchmarks.readme import RESULTS, ROOT, rewrite
from convnext_jax import builders, sharding
from convnext_jax.classification.transforms import EvalTransform, Labelled, TrainTransform
from convnext_jax.config import default_config, resolve
from convnext_jax.data.decode import decode
from convnext_jax.data.folder import FolderSource
from convnext_jax.data.pipeline import train_batches
from convnext_jax.training.stopwatch import Stopwatch

POLICY = "rand-m9-mstd0.5-inc1"
SIZE = 224
# What the four measurements are called on the command line and in the results.
PARTS = ("transforms", "pipeline", "training", "digits")
# Worker processes and reading threads of the pipeline.
READERS = ((0, 1), (0, 2), (0, 4), (1, 1), (1, 4), (2, 1), (2, 4))
QUALITY = 93  # 70 kB at 500x375, which is what ImageNet's files have

Transform = Callable[[bytes, int], Any]


def photographs(count: int, *, mixed: bool) -> list[bytes]:
    """JPEG files of parts of scikit-learn's photographs.

    Args:
      count: how many, of the two in turn.
      mixed: the longer side is log-uniform from 200 to 1500 pixels, in usual proportions and both
        orientations; otherwise all are 500x375.
    """
    rng = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in sklearn.datasets.load_sample_images().images]
    files = []
    for source, _ in zip(itertools.cycle(sources), range(count), strict=False):
        width, height = 500, 375
        if mixed:
            width = round(np.exp(rng.uniform(np.log(200), np.log(1500))))
            height = round(width * rng.choice([9 / 16, 2 / 3, 3 / 4, 1.0]))
            width, height = rng.permutation([width, height]).tolist()
        part = rng.uniform(0.6, 1.0) * min(source.width / width, source.height / height)
        wide, high = part * width, part * height
        left, top = rng.uniform(0, source.width - wide), rng.uniform(0, source.height - high)
        image = source.resize((width, height), box=(left, top, left + wide, top + high))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def contestants() -> dict[str, dict[str, Transform]]:
    """By what is measured and by name: from a file and a number to pixels.

    `timm` ends with a normalised tensor, erased where that is asked for; `timm, uint8` leaves this
    to the accelerator, as ours does.
    """
    torch, timm = import_timm()
    torch.set_num_threads(1)

    def ours(transform: TrainTransform) -> Transform:
        # The generator as the pipeline makes it.
        return lambda file, number: transform(
            decode(file, "given"), np.random.default_rng((0, 0, number))
        )

    def theirs(**options: Any) -> Transform:
        transform = timm.data.create_transform(SIZE, interpolation="bicubic", **options)

        def run(file: bytes, number: int) -> Any:
            with Image.open(io.BytesIO(file)) as image:
                return transform(image.convert("RGB"))

        return run

    def both(**options: Any) -> dict[str, Transform]:
        return {"timm": theirs(**options), "timm, uint8": theirs(use_prefetcher=True, **options)}

    recipe = {"auto_augment": POLICY, "re_prob": 0.25, "re_mode": "pixel"}
    evaluation = EvalTransform(SIZE)
    return {
        "training, the whole recipe": {
            "ours": ours(TrainTransform(SIZE, auto_augment=POLICY)),
            **both(is_training=True, **recipe),
        },
        "training, crop and flip": {
            "ours": ours(TrainTransform(SIZE)),
            **both(is_training=True, color_jitter=None),
        },
        "evaluation": {
            "ours": lambda file, number: evaluation(decode(file, "given")),
            **both(crop_pct=evaluation.crop_fraction),
        },
    }


def lenient_posterize(image: Image.Image, bits: int) -> Image.Image:
    """Posterizes as Pillow did before 13, which refuses to keep no bits; timm still asks for it."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def time_transforms(files: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Images a second of one core: by what is measured and by contestant, the median of rounds.

    Contestants take turns on the same files. Processor time, as all run in one thread: what else
    runs on the machine then matters less.
    """
    results: dict[str, Any] = {}
    _, timm = import_timm()
    earlier = mock.Mock(wraps=ImageOps, posterize=lenient_posterize)
    with mock.patch.object(timm.data.auto_augment, "ImageOps", earlier):
        for what, transforms in contestants().items():
            speeds: dict[str, list[float]] = {name: [] for name in transforms}
            for turn in range(-1, rounds):
                for name, transform in transforms.items():
                    random.seed(turn + 1)
                    np.random.seed(turn + 1)
                    began = time.process_time()
                    for number, file in enumerate(files):
                        transform(file, (turn + 1) * len(files) + number)
                    if turn >= 0:  # The round before the first compiles and warms up.
                        speeds[name].append(len(files) / (time.process_time() - began))
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            ratios = {
                f"ratio to {name}": statistics.median(
                    a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)
                )
                for name in transforms
                if name != "ours"
            }
            results[what] = {"images_per_second": medians, **ratios}
    return results


def time_pipeline(
    source: FolderSource, images: int, rounds: int, readers: Iterable[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Images a second of `train_batches`, the median of rounds, by worker processes and threads.

    Starting is left out: the clock runs from the first batches, and so many are not counted as can
    have been made before.
    """
    transform = TrainTransform(SIZE, auto_augment=POLICY)
    batch = min(32, len(source))
    results = []
    for workers, threads in readers:
        ready = 2 * max(workers, 1)  # batches in buffers when the clock starts
        steps = ready + max(1, images // batch)
        speeds = []
        for turn in range(rounds):
            with train_batches(
                source,
                Labelled(transform),
                global_batch=batch,
                seed=turn,
                start_step=0,
                num_steps=ready + steps,
                workers=workers,
                threads=threads,
                prefetch=1,
            ) as batches:
                for _ in range(ready):
                    next(batches)
                began = time.perf_counter()
                for _ in range(steps):
                    next(batches)
                speeds.append((steps - ready) * batch / (time.perf_counter() - began))
        speed = statistics.median(speeds)
        results.append({"workers": workers, "threads": threads, "images_per_second": speed})
    return results


def time_training(
    folder: Path, model: str, image_size: int, batch: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Images a second of training with RandAugment, decoding meanwhile and from memory.

    Both take turns with one compiled step. From memory it is the same batch every time, still
    moved to the device.
    """
    config = default_config()
    config.model.name = model
    config.data.update(name="folder", dir=str(folder), eval_split="test", global_batch=batch)
    config.data.update(image_size=image_size, workers=1)
    config.augment.auto_augment = POLICY
    config.num_steps = (rounds + 1) * steps + 2
    config.optim.warmup_epochs = 0.0
    run = builders.build_run(resolve(config), Stopwatch())
    state = run.initialize()
    seconds: dict[str, list[float]] = {"decoding": [], "memory": []}
    with run.batches(0) as batches:
        kept = next(batches)
        for turn in range(rounds + 1):
            for name, taken in seconds.items():
                began = time.perf_counter()
                for _ in range(steps):
                    hosts = next(batches) if name == "decoding" else kept
                    state, metrics = run.train_step(state, sharding.global_batch(hosts, run.mesh))
                metrics.block_until_ready()
                if turn:  # The first round compiles.
                    taken.append(time.perf_counter() - began)
    speeds = {name: steps * batch / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "model": model,
        "image_size": image_size,
        "batch": batch,
        "images_per_second": speeds,
        "input_fraction": 1 - speeds["decoding"] / speeds["memory"],
    }


def measure_digits(*overrides: str) -> dict[str, Any]:
    """Trains `configs/digits.py` with one worker; returns how long it waited for data."""
    command = [sys.executable, "-m", "convnext_jax.main", "--config", "configs/digits.py"]
    command += ["--config.data.workers=1", "--config.tensorboard=False", *overrides]
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run([*command, "--workdir", workdir], check=True, cwd=ROOT)
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    waits = [record["data_wait_fraction"] for record in records if "step_seconds" in record]
    # The first record has the compilation and the start of the worker.
    waits = waits[1:] or waits
    return {
        "data_wait_fraction": {
            "median": statistics.median(waits),
            "mean": statistics.fmean(waits),
            "largest": max(waits),
        }
    }


def measure(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs what the flags ask for, on JPEG files below `folder`."""
    results: dict[str, Any] = {}
    for name, mixed in (("500x375", False), ("mixed sizes", True)):
        files = photographs(flags.images, mixed=mixed)
        for i, file in enumerate(files):
            for split in ("train", "test")[: 2 if i < 2 else 1]:
                path = folder / name / split / ("china", "flower")[i % 2] / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file)
        if "transforms" in flags.parts:
            size = statistics.fmean(map(len, files))
            transforms = time_transforms(files, flags.rounds)
            results.setdefault("transforms", {})[name] = {"mean_bytes": size, **transforms}
    jpegs = folder / "500x375"
    if "pipeline" in flags.parts:
        source = FolderSource(jpegs, "train")
        images = flags.images * 4
        results["pipeline"] = time_pipeline(source, images, flags.rounds, flags.readers)
    if "training" in flags.parts:
        results["training"] = time_training(
            jpegs, flags.model, flags.image_size, flags.batch, flags.steps, flags.rounds
        )
    if "digits" in flags.parts:
        results["digits"] = measure_digits()
    return results


def table(results: Mapping[str, Any]) -> str:
    """What one machine's results say."""
    lines = [f"On {results['hardware']}, images a second."]
    if "transforms" in results:
        lines += [
            "",
            "| one core, file to 224x224 | JPEGs | ours | timm | ratio | timm, uint8 | ratio |",
            "|---|---|---|---|---|---|---|",
        ]
    for name, measured in results.get("transforms", {}).items():
        files = f"{name}, {measured['mean_bytes'] / 1000:.0f} kB"
        for what, found in measured.items():
            if what != "mean_bytes":
                speed = found["images_per_second"]
                peers = " | ".join(
                    f"{speed[peer]:.0f} | {found[f'ratio to {peer}']:.2f}"
                    for peer in ("timm", "timm, uint8")
                )
                lines.append(f"| {what} | {files} | {speed['ours']:.0f} | {peers} |")
    if "pipeline" in results:
        lines += ["", "| pipeline: workers | threads in each | images/s |", "|---|---|---|"]
        lines += [
            f"| {found['workers']} | {found['threads']} | {found['images_per_second']:.0f} |"
            for found in results["pipeline"]
        ]
    if "training" in results:
        found = results["training"]
        speed = found["images_per_second"]
        lines += [
            "",
            f"Training {found['model']} at {found['image_size']} pixels, batch {found['batch']}:"
            f" {speed['decoding']:.1f} images/s while decoding JPEGs in one worker on the same"
            f" cores, {speed['memory']:.1f} on a batch in memory; input costs"
            f" {found['input_fraction']:.1%}.",
        ]
    if "digits" in results:
        wait = results["digits"]["data_wait_fraction"]
        lines += [
            "",
            f"`configs/digits.py` with one worker waits for data in {wait['mean']:.2%} of the time"
            f" (median of the records {wait['median']:.2%}).",
        ]
    return "\n".join(lines)


def tables() -> str:
    """The document's generated part: what each machine's file has."""
    files = sorted(RESULTS.glob("input-*.json"))
    return "\n\n".join(table(json.loads(file.read_text())) for file in files)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--images", type=int, default=200, help="JPEG files of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="convnext_atto", help="that is trained")
    parser.add_argument("--image-size", type=int, default=SIZE, help="that it is trained at")
    parser.add_argument("--batch", type=int, default=32, help="that it is trained with")
    parser.add_argument("--steps", type=int, default=4, help="of training in a round")
    parser.add_argument("--out", type=Path, help="directory of the results; the table stays")
    flags = parser.parse_args(arguments)
    flags.readers = READERS
    flags.parts = flags.parts.split(",")
    if not set(flags.parts) <= set(PARTS):
        parser.error(f"--parts must be some of {','.join(PARTS)}")
    file = (RESULTS if flags.out is None else flags.out) / f"input-{this_device()['device']}.json"
    # Parts that are not measured now stay as they were.
    kept = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(flags, Path(folder))
    versions = {
        library: importlib.metadata.version(library)
        for library in ("pillow", "numba", "numpy", "jax", "grain", "torch", "torchvision", "timm")
    }
    versions["libjpeg-turbo"] = str(PIL.features.version("libjpeg_turbo"))
    results = {
        **kept,
        **this_device(),
        "measured": datetime.date.today().isoformat(),
        "versions": versions,
        "images": flags.images,
        "rounds": flags.rounds,
        **measured,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    if flags.out is None:
        document = ROOT / "docs" / "performance.md"
        document.write_text(rewrite(document.read_text(), {"input": tables()}))


if __name__ == "__main__":
    main()
