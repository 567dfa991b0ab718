"""Mask R-CNN on scenes with handwritten digits: `python -m benchmarks.scenes [--only RUN]`.

Trains `configs/digit_scenes_detection.py` from random weights, and again from a classifier with the
same backbone that was trained on the digits before. Both have the same recipe, which is made for
random weights. Writes `benchmarks/results/scenes.json`, the table of docs/detection.md, and the
picture that the first run ends with; needs half an hour on two cores, and wants a quiet machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.check import warn_if_busy
from benchmarks.readme import IMAGES, RESULTS, ROOT, machine, rewrite
from convnext_jax.config_files import load_config
from convnext_jax.training.reporting import METRICS_FILE, is_evaluation, read_records

FILE = RESULTS / "scenes.json"
PAGE = ROOT / "docs" / "detection.md"
PICTURE = IMAGES / "scenes.png"
CONFIG = "configs/digit_scenes_detection.py"
RUNS = ("random weights", "the digits' classifier")
METRICS = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")


def train(config: str, workdir: Path, *overrides: str) -> float:
    """Runs a config to its end; returns the seconds of the whole command."""
    command = [sys.executable, "-m", "convnext_jax.main", "--config", config]
    began = time.perf_counter()
    subprocess.run([*command, "--workdir", str(workdir), *overrides], check=True, cwd=ROOT)
    return time.perf_counter() - began


def classifier(workdir: Path) -> dict[str, Any]:
    """Trains the detector's backbone on the digits; returns its top-1."""
    model = load_config(str(ROOT / CONFIG), []).model
    sizes = [f"--config.model.{name}={getattr(model, name)}" for name in ("depths", "dims")]
    train("configs/digits.py", workdir, *sizes)
    return json.loads((workdir / "summary.json").read_text())["final"]["ema"]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Trains from what `name` says; returns the evaluations."""
    result: dict[str, Any] = {}
    workdir, start = folder / "scenes", []
    if name != RUNS[0]:
        result["classifier_top1"] = classifier(folder / "digits")["top1"]
        start = [f"--config.init_from={folder / 'digits'}"]
    result["seconds"] = train(CONFIG, workdir, *start)
    result["evaluations"] = [
        {"epoch": record["epoch"]} | {key: record[f"eval_params_{key}"] for key in METRICS}
        for record in read_records(workdir / METRICS_FILE)
        if is_evaluation(record)
    ]
    result["num_examples"] = json.loads((workdir / "summary.json").read_text())["final"]["params"][
        "num_examples"
    ]
    if name == RUNS[0]:
        IMAGES.mkdir(exist_ok=True)
        shutil.copy(workdir / "examples.png", PICTURE)
    return result | {"machine": machine()}


def table(results: dict[str, Any]) -> str:
    """The document's generated part."""
    rows = ["| starts from | epochs | box AP | at IoU 0.5 | mask AP | at IoU 0.5 | the command |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name in RUNS:
        if name not in results:
            continue
        found = results[name]
        for evaluation in found["evaluations"]:
            last = evaluation is found["evaluations"][-1]
            minutes = f"{found['seconds'] / 60:.0f} minutes" if last else ""
            cells = " | ".join(f"{evaluation[key]:.1%}" for key in METRICS)
            rows.append(f"| {name} | {evaluation['epoch']:g} | {cells} | {minutes} |")
    if PICTURE.exists():
        rows += ["", "![Scenes: what is there beside what was found](images/scenes.png)"]
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scenes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", choices=RUNS, help="measure this one, and keep the other")
    only = parser.parse_args().only
    warn_if_busy(os.cpu_count() or 1)
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in [only] if only else RUNS:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, Path(folder))
        FILE.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(rewrite(PAGE.read_text(), {"scenes": table(results)}))


if __name__ == "__main__":
    main()
