"""Times the depthwise convolution alone: `python -m benchmarks.depthwise [--json PATH]`.

Every implementation that this device can run computes the convolution, its input gradient and its
filter gradient at the shapes of the models' stages. They take turns, and the median of the rounds
counts. Rates are the bytes that an operation must read and write over its time; beside them stands
their fraction of the rate at which this device copies, measured in the same run (arrays that fit
the caches can exceed 1). The results are compared with XLA's in float32 at its highest precision; a
difference beyond rounding, or an implementation that does not run, ends the program with status 1
after the table.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import check
from convnext_jax.errors import RunError, exit_in_one_sentence, require_one_of
from convnext_jax.models.checks import require
from convnext_jax.models.registry import get_variant
from convnext_jax.ops import depthwise_conv, depthwise_cpu, depthwise_gpu, depthwise_tpu

KERNEL = 7
OPERATIONS = ("forward", "input gradient", "filter gradient")
# Largest difference from XLA in float32, relative to the largest value. Float32: the filter
# gradient adds up to a million terms in another order. Bfloat16: results are rounded to 2^-8.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
DTYPES = tuple(TOLERANCES)

XLA = (
    depthwise_conv.xla_forward,
    depthwise_conv.xla_input_gradient,
    depthwise_conv.xla_filter_gradient,
)
SHIFTED = (
    depthwise_cpu.shifted_forward,
    depthwise_cpu.shifted_input_gradient,
    depthwise_cpu.scanned_filter_gradient,
)
PALLAS = (
    depthwise_gpu.pallas_forward,
    depthwise_gpu.pallas_input_gradient,
    depthwise_gpu.pallas_filter_gradient,
)
TOEPLITZ = (
    depthwise_tpu.toeplitz_forward,
    depthwise_tpu.toeplitz_input_gradient,
    depthwise_tpu.toeplitz_filter_gradient,
)


@dataclasses.dataclass
class Row:
    """One implementation of one operation at one shape; `error` says why nothing was measured."""

    shape: tuple[int, int, int, int]  # Of the images, [N, H, W, C].
    dtype: str
    operation: str
    implementation: str
    seconds: float | None = None
    bytes_per_second: float | None = None
    copy_fraction: float | None = None
    times_xla: float | None = None  # How many times as fast as XLA's own.
    difference: float | None = None
    error: str | None = None


def implementations(
    platform: str, shape: tuple[int, int, int, int]
) -> dict[str, tuple[Callable[..., Array], ...]]:
    """Those that this device runs. Each is the three operations; XLA's come first.

    `shifted` is what CPUs use, in plain XLA operations that run everywhere.
    """
    found = {"xla": XLA, "shifted": SHIFTED}
    if depthwise_gpu.device_ready():
        found["pallas"] = PALLAS
    if platform == "tpu" and depthwise_tpu.rows_of_block(*shape[1:3]):
        found["toeplitz"] = TOEPLITZ
    return found


def stage_shapes(models: Sequence[str], batch: int, size: int) -> list[tuple[int, int, int, int]]:
    """[N, H, W, C] of the models' stages for square images, `size` pixels wide; each once."""
    shapes = [
        (batch, size // (4 * 2**stage), size // (4 * 2**stage), dim)
        for model in models
        for stage, dim in enumerate(get_variant(model).dims)
    ]
    return list(dict.fromkeys(shapes))


def take_turns(
    runs: dict[str, Callable[[], Array]], rounds: int, seconds: float
) -> dict[str, float]:
    """Median seconds of a call of each; a round makes as many calls as take about `seconds`."""

    def duration(run: Callable[[], Array], calls: int) -> float:
        began = time.perf_counter()
        # Queued one behind the other, so that starting them costs no time on the device.
        results = [run() for _ in range(calls)][-1]
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / calls

    # At most 20 results wait in memory.
    calls = {name: min(20, max(1, round(seconds / duration(run, 1)))) for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(duration(run, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def difference(one: Array, other: Array) -> float:
    """Largest difference, relative to the largest value of `other`."""
    wide = one.astype(jnp.float32)
    return float(jnp.max(jnp.abs(wide - other)) / jnp.max(jnp.abs(other)))


def measure(
    shape: tuple[int, int, int, int], dtype: str, copy_rate: float, rounds: int, seconds: float
) -> Iterator[Row]:
    """Times all operations at a shape; `copy_rate` is in bytes/s, read and written."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (shape, (KERNEL, KERNEL, 1, shape[-1]), shape)
    x, kernel, dy = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    wide = [array.astype(jnp.float32) for array in (x, kernel, dy)]
    # Either operation reads or writes two arrays of images; the filter is nothing beside them.
    least_bytes = x.nbytes + dy.nbytes
    for place, operation in enumerate(OPERATIONS):
        count = 2 if operation == "forward" else 3
        with jax.default_matmul_precision("highest"):
            exact = XLA[place](*wide[:count])
        rows, runs = {}, {}
        for name, functions in implementations(jax.default_backend(), shape).items():
            rows[name] = Row(shape, dtype, operation, name)
            run = functools.partial(functions[place], *(x, kernel, dy)[:count])
            try:
                rows[name].difference = difference(jax.block_until_ready(run()), exact)
            except Exception as error:  # A compiler or memory: the others can still be measured.
                rows[name].error = check.sentence(error)
            else:
                runs[name] = run
        times = take_turns(runs, rounds, seconds)
        for name, row in rows.items():
            if name in times:
                row.seconds = times[name]
                row.bytes_per_second = least_bytes / row.seconds
                row.copy_fraction = row.bytes_per_second / copy_rate
            if name in times and "xla" in times:
                row.times_xla = times["xla"] / times[name]
            yield row


def line(row: Row) -> str:
    """A row as a line of the printed table."""
    images = "x".join(map(str, row.shape))
    start = f"{images:>16} {row.dtype:>9} {row.operation:>16} {row.implementation:>8}"
    if row.seconds is None:
        return f"{start}  {row.error}"
    ratio = "" if row.times_xla is None else f"{row.times_xla:8.2f}"
    return (
        f"{start} {row.seconds * 1e3:10.3f} {(row.bytes_per_second or 0) / 1e9:8.1f}"
        f" {row.copy_fraction:8.3f} {ratio:>8} {row.difference:10.1e}"
    )


HEADER = (
    f"{'images':>16} {'dtype':>9} {'operation':>16} {'by':>8} {'ms':>10} {'GB/s':>8}"
    f" {'of copy':>8} {'x XLA':>8} {'difference':>10}"
)


def faults(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the rows, a sentence each."""
    found = []
    for row in rows:
        what = f"{row.implementation}'s {row.operation} at {row.shape} in {row.dtype}"
        if row.error is not None:
            found.append(f"{what} failed: {row.error}")
        # XLA's float32 convolution may round its inputs to 10 bits on GPUs and more on TPUs.
        elif row.implementation != "xla" and not (row.difference or 0) <= TOLERANCES[row.dtype]:
            found.append(f"{what} differs from XLA by {row.difference:.1e}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = functools.partial(parser.add_argument, metavar="")
    add("--models", default="convnext_tiny,convnext_base,convnext_xlarge", help="whose stages")
    add("--dtype", default="float32,bfloat16", help="of images and filters")
    add("--batch", type=int, default=128, help="images; 128 by default")
    add("--image-size", type=int, default=224, help="pixels; 224 by default")
    add("--rounds", type=int, default=7, help="of each implementation; 7 by default")
    add("--round-seconds", type=float, default=0.1, help="about how long a round takes")
    add("--json", type=Path, help="file for the results")
    quick = "ConvNeXt-T, 2 images, 3 rounds of 0.02 s: under a minute on CPU"
    parser.add_argument("--quick", action="store_true", help=quick)
    flags = parser.parse_args(arguments)
    if flags.quick:  # Other defaults; what the command line says still holds.
        parser.set_defaults(models="convnext_tiny", batch=2, rounds=3, round_seconds=0.02)
        flags = parser.parse_args(arguments)
    with exit_in_one_sentence():
        dtypes = flags.dtype.split(",")
        for dtype in dtypes:
            require_one_of("dtype", dtype, DTYPES)
        for name in ("batch", "rounds", "round_seconds"):
            require(getattr(flags, name) > 0, name, getattr(flags, name), "be positive")
        require(flags.image_size >= 32, "image_size", flags.image_size, "be at least 32 pixels")
        shapes = stage_shapes(flags.models.split(","), flags.batch, flags.image_size)
        device, rows = check.this_device(), []
        copy_rates = {
            dtype: check.device_limits(dtype, device["platform"])["copy_bytes_per_second"]
            for dtype in dtypes
        }
        print(f"{device['hardware']}; copies {max(copy_rates.values()) / 1e9:.0f} GB/s\n{HEADER}")
        for dtype, shape in itertools.product(dtypes, shapes):
            for row in measure(shape, dtype, copy_rates[dtype], flags.rounds, flags.round_seconds):
                rows.append(row)
                print(line(row), flush=True)
        if flags.json is not None:
            settings = {name: getattr(flags, name) for name in ("rounds", "round_seconds")}
            versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
            results = device | settings | {"versions": versions}
            results |= {"copy_bytes_per_second": copy_rates}
            results |= {"rows": [dataclasses.asdict(row) for row in rows]}
            flags.json.write_text(json.dumps(results, indent=2) + "\n")
        if problems := faults(rows):
            raise RunError("; ".join(problems))


if __name__ == "__main__":
    main()
