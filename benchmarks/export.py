"""Measures exported models beside timm's own export: `python -m benchmarks.export`.

The same weights, written as ONNX by this project, folded and not, and by timm; ONNX Runtime runs
the three in one process and in turns, so that a busy machine slows all of them. Logits are compared
first. Writes `results/export.json` and the table of docs/export.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.models import import_timm
from benchmarks.readme import RESULTS, ROOT, machine, rewrite
from convnext_jax.processes import usable_cores

MODELS = ("convnext_tiny", "convnextv2_tiny")
BATCHES = (1, 8)
SIZE = 224
CONTESTANTS = ("ours", "ours, folded", "timm")


def write(model: str, folder: Path) -> dict[str, Path]:
    """Writes a model with random weights of order 1 in each way; returns the files."""
    torch, timm = import_timm()
    from timm.utils.onnx import onnx_export

    from convnext_jax.export.__main__ import main as export

    torch.manual_seed(0)
    theirs = timm.create_model(model).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("gamma", "grn.weight")):
                parameter.normal_(0.5, 0.2)  # as trained; at first they are next to nothing
            elif name.endswith("grn.bias"):
                parameter.normal_(0, 0.2)
    torch.save(theirs.state_dict(), folder / "timm.pth")
    onnx_export(
        theirs, str(folder / "timm.onnx"), batch_size=2, input_size=(3, SIZE, SIZE), opset=20
    )
    files = {"timm": folder / "timm.onnx"}
    for name, flags in (("ours", []), ("ours, folded", ["--fold"])):
        out = folder / name.replace(", ", "-")
        arguments = ["--checkpoint", str(folder / "timm.pth"), str(out), "--formats", "onnx"]
        try:
            export([*arguments, "--size", str(SIZE), *flags])
        except SystemExit as ended:
            if ended.code:
                raise
        files[name] = out / "model.onnx"
    return files


def sessions(files: dict[str, Path]) -> dict[str, Any]:
    """Each file as a function of images."""
    import onnxruntime

    found = {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        found[name] = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
    return found


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Images a second of each, a median over rounds, and ours beside timm's."""
    with tempfile.TemporaryDirectory() as folder:
        running = sessions(write(model, Path(folder)))
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), 3, SIZE, SIZE))
    mean, std = (np.array(x).reshape(3, 1, 1) for x in _normalisation())
    normalised = ((pixels / 255 - mean) / std).astype(np.float32)
    images = {name: normalised for name in running} | {"ours, folded": pixels.astype(np.float32)}

    def run(name: str, batch: int) -> np.ndarray:
        session = running[name]
        (found,) = session.run(None, {session.get_inputs()[0].name: images[name][:batch]})
        return found

    expected = run("timm", max(BATCHES))
    difference = max(
        float(abs(run(name, max(BATCHES)) - expected).max() / abs(expected).max())
        for name in CONTESTANTS
    )
    speeds = {}
    for batch in BATCHES:
        seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for turn in range(rounds + 2):
            for name in CONTESTANTS:
                began = time.perf_counter()
                run(name, batch)
                if turn >= 2:  # the first ones fill caches
                    seconds[name].append(time.perf_counter() - began)
        speeds[batch] = {
            name: {
                "images_per_second": batch / statistics.median(own),
                "ratio": statistics.median(
                    t / o for t, o in zip(seconds["timm"], own, strict=True)
                ),
            }
            for name, own in seconds.items()
        }
    return {"difference": difference, "speeds": speeds}


def _normalisation() -> tuple[Any, Any]:
    from convnext_jax.models.variants import Preprocessing

    return Preprocessing().mean, Preprocessing().std


def table(results: dict[str, Any]) -> str:
    """The document's generated part."""
    rows = [
        f"{results['machine']}, ONNX Runtime {results['onnxruntime']}; {SIZE} pixels, float32,"
        " images a second:",
        "",
        "| model | batch | timm's export | ours | ours / timm's | ours, folded | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, found in results["models"].items():
        for batch, speeds in found["speeds"].items():
            theirs, plain, folded = (speeds[name] for name in ("timm", *CONTESTANTS[:2]))
            rows.append(
                f"| {model} | {batch} | {theirs['images_per_second']:.2f}"
                f" | {plain['images_per_second']:.2f} | {plain['ratio']:.2f}"
                f" | {folded['images_per_second']:.2f} | {folded['ratio']:.2f} |"
            )
    worst = max(found["difference"] for found in results["models"].values())
    return "\n".join([*rows, "", f"Logits differ by at most {worst:.0e} of the largest."])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="calls of each that are timed")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    import onnxruntime

    results = {
        "machine": machine(),
        "onnxruntime": onnxruntime.__version__,
        "models": {model: measure(model, arguments.rounds) for model in MODELS},
    }
    text = json.dumps(results, indent=2) + "\n"
    (RESULTS / "export.json").write_text(text)
    document = ROOT / "docs" / "export.md"
    document.write_text(rewrite(document.read_text(), {"speed": table(json.loads(text))}))


if __name__ == "__main__":
    main()
