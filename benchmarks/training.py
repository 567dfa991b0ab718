"""Small runs on real data: `python -m benchmarks.training`.

1. The digits with the whole recipe switched on: RandAugment, random erasing, mixup, cutmix,
   stochastic depth, moving average.
2. Fine-tuning with layer-wise learning-rate decay against training from random weights: a model
   trained on the digits 0 to 4 learns 5 to 9 from 200 images, in few steps; means of several seeds,
   as one image more or less is half a percent.

Writes `benchmarks/results/training.json` and the table of docs/training.md.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection
from PIL import Image

from benchmarks.readme import RESULTS, ROOT, machine, rewrite

RECIPE = (
    "--config.augment.auto_augment=rand-m9-mstd0.5-inc1",
    "--config.augment.erasing=0.25",
    "--config.augment.mixup=0.8",
    "--config.augment.cutmix=1.0",
    "--config.augment.mix_group=64",
    "--config.num_epochs=100",
    "--config.eval_every_epochs=20",
)
PRETRAINING = (
    "--config.augment.auto_augment=rand-m9-mstd0.5-inc1",
    "--config.augment.mixup=0.8",
    "--config.augment.cutmix=1.0",
    "--config.augment.mix_group=64",
    "--config.num_epochs=60",
    "--config.eval_every_epochs=60",
)
FEW = (
    "--config.data.global_batch=50",
    "--config.num_epochs=10",
    "--config.eval_every_epochs=10",
    "--config.log_every_steps=20",
    "--config.optim.warmup_epochs=1",
    "--config.optim.ema_decay=0.9",
)
SEEDS = range(5)


def train(workdir: Path, *overrides: str) -> dict[str, Any]:
    """Trains `configs/digits.py` with overrides; returns its summary."""
    command = [sys.executable, "-m", "convnext_jax.main", "--config", "configs/digits.py"]
    command += ["--workdir", str(workdir), "--config.tensorboard=False", *overrides]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((workdir / "summary.json").read_text())


def write_folders(root: Path, digits: range, training_images: int | None) -> None:
    """Writes some of scikit-learn's digits as `ROOT/{train,test}/DIGIT/*.png`.

    The split is that of the dataset `digits`; `training_images` of the training images are kept,
    stratified, or all.
    """
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    split = sklearn.model_selection.train_test_split
    train_rows, test_rows = split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    train_rows, test_rows = (
        rows[np.isin(labels[rows], digits)] for rows in (train_rows, test_rows)
    )
    if training_images is not None:
        train_rows, _ = split(
            train_rows, train_size=training_images, stratify=labels[train_rows], random_state=0
        )
    for name, rows in (("train", train_rows), ("test", test_rows)):
        for row in rows:
            folder = root / name / str(labels[row])
            folder.mkdir(parents=True, exist_ok=True)
            scan = np.round(pixels[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)
            Image.fromarray(scan).save(folder / f"{row}.png")


def measure(folder: Path) -> dict[str, Any]:
    """All runs; returns top-1 of the moving average and the number of held-out images of each."""
    runs = {"whole recipe": [train(folder / "recipe", *RECIPE)]}
    write_folders(folder / "low", range(5), None)
    write_folders(folder / "high", range(5, 10), 200)
    data = ("--config.data.name=folder", "--config.data.train_split=train")
    low = (*data, f"--config.data.dir={folder / 'low'}")
    high = (*data, f"--config.data.dir={folder / 'high'}", *FEW)
    runs["0 to 4"] = [train(folder / "pretrained", *low, *PRETRAINING)]
    fine_tuning = (
        f"--config.init_from={folder / 'pretrained'}",
        "--config.init_head=False",  # five classes too, but others
        "--config.optim.layer_decay=0.9",
    )
    for name, start in (("random weights", ()), ("fine-tuned", fine_tuning)):
        runs[f"5 to 9, {name}"] = [
            train(folder / f"{name}-{seed}", *high, *start, f"--config.seed={seed}")
            for seed in SEEDS
        ]
    return {
        name: {
            "top1": [summary["final"]["ema"]["top1"] for summary in summaries],
            "num_examples": summaries[0]["final"]["ema"]["num_examples"],
            "epochs": summaries[0]["final"]["epoch"],
        }
        for name, summaries in runs.items()
    }


def table(results: dict[str, Any]) -> str:
    """The document's generated part."""
    rows = [
        "| run | epochs | held-out images | seeds | top-1, mean | least |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {run['epochs']:g} | {run['num_examples']} | {len(run['top1'])}"
        f" | {statistics.mean(run['top1']):.2%} | {min(run['top1']):.2%} |"
        for name, run in results["runs"].items()
    ]
    return "\n".join(rows)


def main() -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as folder:
        results = {"runs": measure(Path(folder)), "machine": machine()}
    (RESULTS / "training.json").write_text(json.dumps(results, indent=2) + "\n")
    document = ROOT / "docs" / "training.md"
    document.write_text(rewrite(document.read_text(), {"measured": table(results)}))


if __name__ == "__main__":
    main()
