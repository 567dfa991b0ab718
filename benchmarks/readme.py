"""Measures what the README states, and writes it there: `python -m benchmarks.readme [--measure]`.

With `--measure digits,tests` it first trains the digits and runs the test suite, and writes what
came out to `benchmarks/results/digits.json` and `tests.json`; the model table it computes anew each
time into `models.json`. Then it rewrites the README's parts between `<!-- NAME -->` and `<!-- end
-->`.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from convnext_jax import create_model, list_models
from convnext_jax.errors import exit_in_one_sentence, require_one_of
from convnext_jax.models.flops import count_macs
from convnext_jax.models.registry import get_variant

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


def machine() -> str:
    """Processor, cores and Python of this machine, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0]}, Python {platform.python_version()}"


def measure_digits() -> dict[str, Any]:
    """Trains `configs/digits.py` in a new directory; returns its summary."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "convnext_jax.main", "--config", "configs/digits.py"]
        began = time.perf_counter()
        subprocess.run([*command, "--workdir", workdir], check=True, cwd=ROOT)
        seconds = time.perf_counter() - began
        summary = json.loads((Path(workdir) / "summary.json").read_text())
        keep_pictures(Path(workdir))
    return summary | {"command_seconds": seconds, "machine": machine()}


def keep_pictures(workdir: Path) -> None:
    """Keeps a run's curves, and how its report looks where there is a browser."""
    IMAGES.mkdir(exist_ok=True)
    shutil.copy(workdir / "curves.png", IMAGES / "digits.png")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is not None:
        flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,1100"
        shot = f"--screenshot={IMAGES / 'report.png'}"
        page = (workdir / "report.html").as_uri()
        subprocess.run([browser, *flags.split(), shot, page], check=True, capture_output=True)


def measure_tests() -> dict[str, Any]:
    """Runs `make test`; returns how long it took and pytest's closing line."""
    began = time.perf_counter()
    closing = ""
    with subprocess.Popen(["make", "test"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            print(line, end="", flush=True)
            closing = line.strip("= \n") or closing
    if tests.returncode:
        raise SystemExit("the tests failed: nothing is written")
    seconds = time.perf_counter() - began
    return {"command_seconds": seconds, "closing_line": closing, "machine": machine()}


def model_table() -> dict[str, Any]:
    """Parameters and multiply-accumulates of every model that the paper or timm trained on 1K."""
    return {name: _model_row(name) for name in list_models() if name in PAPER}


def _model_row(name: str) -> dict[str, Any]:
    size = get_variant(name).input_size
    model = nnx.eval_shape(lambda: create_model(name))
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    macs = count_macs(lambda state, images: nnx.merge(graph, state)(images), state, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state))
    return {"parameters": parameters, "macs": macs, "image_size": size, "top1": PAPER[name]}


# Top-1 (percent) that the paper reports for 300 epochs of ImageNet-1K at 224 pixels; None where the
# published weights have another origin.
PAPER = {
    "convnext_atto": None,
    "convnext_femto": None,
    "convnext_pico": None,
    "convnext_nano": None,
    "convnext_tiny": 82.1,
    "convnext_small": 83.1,
    "convnext_base": 83.8,
    "convnext_large": 84.3,
    "convnext_xlarge": None,
    "convnext_isotropic_small": 79.7,
    "convnext_isotropic_base": 82.0,
    "convnext_isotropic_large": 82.6,
}


# What the authors' own README says instead.
IN_README = {"convnext_isotropic_small": " (authors' README: 78.7 %)"}


def sections() -> dict[str, str]:
    """The README's generated parts, by name."""
    models = json.loads((RESULTS / "models.json").read_text())
    rows = ["| model | parameters | MACs at 224 | paper's top-1 |", "|---|---|---|---|"]
    for name in sorted(models, key=lambda name: ("isotropic" in name, models[name]["parameters"])):
        row = models[name]
        top1 = "" if row["top1"] is None else f"{row['top1']} %{IN_README.get(name, '')}"
        macs = f"{row['macs'] / 1e9:.2f} G"
        rows.append(f"| `{name}` | {row['parameters']:,} | {macs} | {top1} |")

    digits = json.loads((RESULTS / "digits.json").read_text())
    final = digits["final"][digits["evaluated"]]
    measured = [
        f"On {digits['machine']}, after installation:",
        "",
        f"- `make train` takes {digits['command_seconds']:.0f} s and ends with top-1"
        f" {final['top1']:.2%} on the {final['num_examples']} held-out images",
    ]
    if (RESULTS / "tests.json").exists():
        tests = json.loads((RESULTS / "tests.json").read_text())
        elsewhere = "" if tests["machine"] == digits["machine"] else f", on {tests['machine']}"
        measured.append(
            f"- `make test` takes {tests['command_seconds'] / 60:.0f} minutes:"
            f" {tests['closing_line'].partition(' passed')[0]} tests passed{elsewhere}"
        )
    return {"models": "\n".join(rows), "measured": "\n".join(measured)}


def rewrite(text: str, parts: dict[str, str]) -> str:
    """Replaces what stands between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
      ValueError: the text has no such part.
    """
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise ValueError(f"the README must have one part <!-- {name} -->, not {count}")
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", default="", help="digits, tests or both; takes minutes")
    measures = {"models": model_table, "digits": measure_digits, "tests": measure_tests}
    chosen = ["models", *filter(None, parser.parse_args().measure.split(","))]
    with exit_in_one_sentence():
        for name in chosen:
            require_one_of("--measure", name, measures)
    for name in chosen:
        result = measures[name]()
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    readme = ROOT / "README.md"
    readme.write_text(rewrite(readme.read_text(), sections()))


if __name__ == "__main__":
    main()
