"""Measures UPerNet over ConvNeXt-T beside Hugging Face's: `python -m benchmarks.segmentation`.

Both have the same weights and see the same crop of 512 pixels, each in a process of its own; the
processes take turns, so that a busy machine slows both. Writes `results/segmentation.json` and the
table of docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.models import ENVIRONMENT, import_timm
from benchmarks.readme import RESULTS, ROOT, machine, rewrite

CROP, CLASSES = 512, 150
# Images at once: BatchNorm in training needs two.
BATCH = {"infer": 1, "train": 2}
CONTESTANTS = ("ours", "transformers")


def import_transformers() -> tuple[Any, Any]:
    """Imports PyTorch and Hugging Face's transformers, which import torchvision as timm does."""
    torch, _ = import_timm()
    import transformers

    return torch, transformers


def theirs(folder: Path) -> dict[str, Callable[[], float]]:
    """Hugging Face's model: what a step of each mode does, and what comes out."""
    torch, transformers = import_transformers()
    torch.manual_seed(0)
    model = transformers.UperNetForSemanticSegmentation.from_pretrained(folder)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore
    images = {mode: torch.randn(n, 3, CROP, CROP) for mode, n in BATCH.items()}
    images = {m: x.contiguous(memory_format=torch.channels_last) for m, x in images.items()}
    labels = torch.randint(0, CLASSES, (BATCH["train"], CROP, CROP))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def infer() -> float:
        model.eval()
        with torch.inference_mode():
            maps = model.backbone(images["infer"]).feature_maps
            return float(model.decode_head(maps).abs().mean())

    def train() -> float:
        model.train()
        optimizer.zero_grad()
        loss = model(images["train"], labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return {"infer": infer, "train": train}


def ours(folder: Path) -> dict[str, Callable[[], float]]:
    """This project's: the model's function, and the step of a run."""
    import jax
    import numpy as np

    from convnext_jax import sharding
    from convnext_jax.config import from_dict
    from convnext_jax.models.spec import batch_stats_of, params_of
    from convnext_jax.segmentation.task import segmentation
    from convnext_jax.step_builder import step_of
    from convnext_jax.weights.load import load

    model = load(folder).model
    params, stats = params_of(model), batch_stats_of(model)
    config = from_dict(
        {
            "num_steps": 1000,
            "model": {"name": "upernet_convnext_tiny"},
            "data": {"global_batch": BATCH["train"], "image_size": CROP},
            "optim": {"label_smoothing": 0.0, "ema_decay": 0.0, "warmup_steps": 1, "lr": 1e-4},
        }
    )
    task = segmentation(config, CLASSES, BATCH["train"])
    step = step_of(task, config, sharding.create_mesh(), 1000)
    rng = np.random.default_rng(0)
    blank = task.examples.blank
    batch = {name: np.stack([value] * BATCH["train"]) for name, value in blank.items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape, np.uint8)
    batch["label"] = rng.integers(0, CLASSES, batch["label"].shape).astype(np.uint8)
    batch["size"][:] = CROP
    images = rng.normal(size=(BATCH["infer"], CROP, CROP, 3)).astype(np.float32)
    apply = task.model.spec.function_with_batch_stats()
    function = jax.jit(lambda p, s, x: abs(apply(p, s, x)[0].decode).mean())
    state = [jax.jit(step.initial_state)(params, stats)]

    def infer() -> float:
        return float(function(params, stats, images))

    def train() -> float:
        state[0], metrics = step.function(state[0], batch)
        return float(metrics[0])

    return {"infer": infer, "train": train}


def contestant(name: str, mode: str, folder: Path) -> None:
    """Takes a step for each line of its input, and prints its seconds."""
    step = {"ours": ours, "transformers": theirs}[name](folder)[mode]
    for _ in range(2):  # compiles, and fills caches
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(time.perf_counter() - began, flush=True)


def measure(mode: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of a step of each contestant, a median over rounds, and their ratio's."""
    command = [sys.executable, "-m", "benchmarks.segmentation", "--folder", str(folder)]
    running = {}
    for name in CONTESTANTS:  # one after the other, so that compiling disturbs nobody
        running[name] = subprocess.Popen(
            [*command, "--contestant", name, "--mode", mode],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while running[name].stdout.readline() != "ready\n":
            if running[name].poll() is not None:
                raise SystemExit(f"{name} ended with {running[name].returncode}")
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[name].append(float(process.stdout.readline()))
    for process in running.values():
        process.stdin.close()
        process.wait()
    pairs = zip(seconds["transformers"], seconds["ours"], strict=True)
    return {
        "batch": BATCH[mode],
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": statistics.median(their / our for their, our in pairs),
        "rounds": rounds,
    }


def table(results: dict[str, Any]) -> str:
    """The document's generated part."""
    rows = [
        f"{results['machine']}; {CROP} pixels, float32:",
        "",
        "| step | batch | ours, images/s | transformers, images/s | ours / theirs |",
        "|---|---|---|---|---|",
    ]
    for mode, found in results["modes"].items():
        speeds = [found["batch"] / found["seconds"][name] for name in CONTESTANTS]
        rows.append(
            f"| {mode} | {found['batch']} | {speeds[0]:.3f} | {speeds[1]:.3f} |"
            f" {found['ratio']:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that are timed")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contestant(arguments.contestant, arguments.mode, arguments.folder)
        return
    _, transformers = import_transformers()
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[96, 192, 384, 768],  # the default, a tuple, fails
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.UperNetConfig(backbone_config=backbone, num_labels=CLASSES)
        transformers.UperNetForSemanticSegmentation(config).save_pretrained(folder)
        modes = {mode: measure(mode, arguments.rounds, Path(folder)) for mode in BATCH}
    results = {"machine": machine(), "modes": modes}
    (RESULTS / "segmentation.json").write_text(json.dumps(results, indent=2) + "\n")
    document = ROOT / "docs" / "performance.md"
    document.write_text(rewrite(document.read_text(), {"segmentation": table(results)}))


if __name__ == "__main__":
    main()
