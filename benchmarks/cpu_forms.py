"""What the forms of operations for CPUs are worth: `python -m benchmarks.cpu_forms`.

Each beside the same program without it, in turns in one process: the depthwise convolution as
shifted slices (`ops/depthwise_cpu.py`), inference with large maps of blocks in pieces
(`ops/pieces.py`), with kernels rounded once (`models/spec.py`), and dense 3x3 convolutions by
Winograd's filtering (`ops/winograd.py`). Writes `benchmarks/results/cpu_forms-DEVICE.json` and its
part of docs/performance.md. All that twice: with the memory allocator as it is, and with the
settings of docs/performance.md, which take away a part of what large temporaries cost.
"""

import argparse
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from benchmarks.check import this_device, warn_if_busy
from benchmarks.models import ENVIRONMENT
from benchmarks.readme import RESULTS, ROOT, rewrite
from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.models.spec import ModelSpec, params_of, rounded_kernels
from convnext_jax.ops import conv, depthwise_conv, depthwise_cpu, pieces

PAGE = ROOT / "docs" / "performance.md"
MODEL = "convnext_tiny"
# As it is, glibc gives large buffers back to the kernel and faults them in again; as the benchmarks
# beside other libraries set it, it keeps them.
ALLOCATORS: dict[str, dict[str, str]] = {"as it is": {}, "set": ENVIRONMENT}
IN_PIECES = [("float32", 8), ("float32", 32), ("bfloat16", 8), ("bfloat16", 32)]
ROUNDED = [1, 8]
DEPTHWISE = [(8, 56, 56, 96), (8, 28, 28, 192), (8, 14, 14, 384), (8, 7, 7, 768)]
# Maps of a pyramid for 800 x 1344 pixels, and UPerNet's: [N, H, W, channels in and out].
CONVOLUTIONS = [(1, 200, 336, 256), (1, 100, 168, 256), (1, 50, 84, 256), (1, 128, 128, 512)]

DEPTHWISE_FORMS = {
    "convolution": (depthwise_conv.xla_forward, depthwise_cpu.shifted_forward),
    "filter's gradient": (
        depthwise_conv.xla_filter_gradient,
        depthwise_cpu.scanned_filter_gradient,
    ),
}

ROUND_SECONDS = 0.1  # at least
Run = Callable[[], Any]  # Its result is what to wait for.


def cases() -> Iterator[tuple[str, Run, Run]]:
    """What is measured, without the form and with it; built when asked for."""
    for shape in DEPTHWISE:
        what = "x".join(map(str, shape))
        for operation, (plain, ours) in DEPTHWISE_FORMS.items():
            yield f"depthwise {operation}, {what}", depthwise(plain, shape), depthwise(ours, shape)
    for dtype, batch in IN_PIECES:
        with mock.patch.object(pieces, "_LARGE", math.inf):
            whole, _ = inference(dtype, batch)
        yield f"inference in pieces, {dtype}, batch {batch}", whole, inference(dtype, batch)[0]
    for batch in ROUNDED:
        yield f"inference with bfloat16 kernels, batch {batch}", *inference("bfloat16", batch)
    for shape in CONVOLUTIONS:
        what = "x".join(map(str, shape))
        for way, make in {"forward": convolution, "and backward": gradients}.items():
            with mock.patch.object(conv, "suits", lambda *_: False):
                plain = make(shape)
            yield f"3x3 convolution of {what}, {way}", plain, make(shape)


def depthwise(function: Callable[..., Any], shape: tuple[int, ...]) -> Run:
    """One of the operations by 7x7 filters, compiled."""
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, shape[-1]))
    arguments = (x, kernel) if "forward" in function.__name__ else (x, kernel, x)
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: compiled(*arguments)


def inference(dtype: str, batch: int) -> tuple[Run, Run]:
    """The model's, compiled, with kernels as they are and rounded."""
    spec = ModelSpec(MODEL, IMAGENET_1K_CLASSES, {"dtype": dtype})
    params = params_of(spec.create())
    rounded = rounded_kernels(params, spec.kernel_dtypes())
    images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3), dtype)
    function = jax.jit(spec.function())
    plain, fewer = (function.lower(each, images).compile() for each in (params, rounded))
    return (lambda: plain(params, images)), (lambda: fewer(rounded, images))


def convolution(shape: tuple[int, ...]) -> Run:
    """A 3x3 one with as many channels out as in, compiled."""
    x, kernel = _operands(shape)
    function = jax.jit(lambda x, kernel: conv.conv(x, kernel, 1, ((1, 1), (1, 1))))
    compiled = function.lower(x, kernel).compile()
    return lambda: compiled(x, kernel)


def gradients(shape: tuple[int, ...]) -> Run:
    """The same, and its gradients by both operands."""
    x, kernel = _operands(shape)

    def function(x: jax.Array, kernel: jax.Array) -> Any:
        y, backward = jax.vjp(lambda x, k: conv.conv(x, k, 1, ((1, 1), (1, 1))), x, kernel)
        return y, backward(y)

    compiled = jax.jit(function).lower(x, kernel).compile()
    return lambda: compiled(x, kernel)


def _operands(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    channels = shape[-1]
    kernel = jax.random.normal(keys[1], (3, 3, channels, channels)) / (3 * channels**0.5)
    return jax.random.normal(keys[0], shape), kernel


def in_turns(runs: tuple[Run, Run], rounds: int) -> list[float]:
    """Median seconds of each; of short ones many in a row, as single ones scatter by half."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in runs:
        jax.block_until_ready(run())  # The first warms up.
    counts = [math.ceil(ROUND_SECONDS / _seconds(run)) for run in runs]
    for _ in range(rounds):
        for run, count, seconds in zip(runs, counts, times, strict=True):
            seconds.append(_seconds(run, count))
    return [statistics.median(seconds) for seconds in times]


def _seconds(run: Run, count: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(run())
    return (time.perf_counter() - began) / count


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds without each form and with it."""
    found = {}
    for name, *runs in cases():
        found[name] = before, now = in_turns(tuple(runs), rounds)
        print(f"{name}: {before * 1e3:.1f} -> {now * 1e3:.1f} ms", file=sys.stderr, flush=True)
        jax.clear_caches()
    return found


def table(result: dict[str, Any]) -> str:
    """Each case, a line."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [f"{result['hardware']}; {versions}:", ""]
    lines += [
        "| | before | now | now / before | with the allocator's settings: before | now |"
        " now / before |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in result["seconds"]["as it is"]:
        cells = [name]
        for allocator in ALLOCATORS:
            before, now = result["seconds"][allocator][name]
            cells += [f"{before * 1e3:.1f} ms", f"{now * 1e3:.1f} ms", f"{now / before:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="directory of the results; the table stays")
    parser.add_argument("--here", action="store_true", help="print what is measured, as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.rounds)))
        return
    device = this_device()
    warn_if_busy(device["threads"])
    seconds = {}
    for allocator, settings in ALLOCATORS.items():
        print(f"the allocator {allocator}", flush=True)
        # It reads its settings as a process starts.
        command = [sys.executable, "-m", "benchmarks.cpu_forms", "--here"]
        done = subprocess.run(
            [*command, f"--rounds={arguments.rounds}"],
            env=os.environ | settings,
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        seconds[allocator] = json.loads(done.stdout)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    result = device | {"versions": versions, "rounds": arguments.rounds, "seconds": seconds}
    # Where a form is worth less than it was, `benchmarks.check` says so.
    result["ratios"] = {
        f"without {name}, the allocator {allocator}": before / now
        for allocator, found in seconds.items()
        for name, (before, now) in found.items()
    }
    file = (arguments.out or RESULTS) / f"cpu_forms-{device['device']}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.out is None:
        PAGE.write_text(rewrite(PAGE.read_text(), {"cpu forms": table(result)}))


if __name__ == "__main__":
    main()
