"""Compares speeds with the committed ones: `python -m benchmarks.check` (`make bench-check`).

Measures again, in shorter rounds, what the files that `benchmarks.models` and
`benchmarks.detection` wrote for this kind of device say, and compares how many times as fast as
each peer ours is. A ratio that fell by more than the tolerance, twice, is a line, and the exit
status 1. Ratios, because they hold on a busier or quieter machine better than speeds do; they still
scatter by some percent, which the tolerance is for, and those of slow peers by more: see `FAR`.

This module is also where the contents of results files are defined: device, limits, table.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import convnext_jax
from benchmarks import gpu_step, tpu_step
from benchmarks.again import OTHERS, measure_again, plan_again, plan_ratios, with_input_ratios
from benchmarks.readme import RESULTS, ROOT, machine, rewrite
from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.errors import InputError
from convnext_jax.models.flops import count_macs
from convnext_jax.models.spec import ModelSpec

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm")
PLAN_TOLERANCE = 0.05  # Compilers of other days make slightly other code; nothing else varies.
# A peer that is so many times as slow runs on one core, or page by page: by 1.6 times faster or
# slower from one hour to the next, while what uses all cores in the caches hardly changes.
FAR = 5
OPTIMIZER_BYTES = 6 * 4  # AdamW reads and writes a parameter and its two moments, float32.


def this_device() -> dict[str, Any]:
    """The device that JAX uses here: its platform, a name for files, hardware, and threads."""
    # This process only asks, and must leave the memory to the contestants.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device, threads = jax.devices()[0], len(os.sched_getaffinity(0))
    if device.platform == "cpu":
        # Processors of one name may compute at twice the other's speed.
        slug, hardware = f"cpu-{threads}-cores", machine()
        if kind := _processor():
            slug, hardware = f"{slug}-{'-'.join(kind)}", f"{hardware} ({' '.join(kind)})"
    else:
        slug = re.sub("[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
        hardware = f"{device.device_kind}, {machine()}"
    found = {"device": slug, "platform": device.platform, "hardware": hardware}
    return found | {"threads": threads}


def _processor() -> list[str]:
    """Vendor, family and model of the processor; empty: the system does not say."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    vendor = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(found.get("vendor_id", ""))
    return [vendor, found["cpu family"], found["model"]] if vendor else []


def warn_if_busy(threads: int) -> None:
    """Says so if other programs use the processor.

    They do not slow all contestants alike: PyTorch's threads wait for each other after every
    operation, and lose far more than XLA's.
    """
    load = os.getloadavg()[0]
    if load > threads / 4:
        print(f"warning: the machine is busy (load {load:.1f}): measure again when it is quiet")


def device_limits(dtype: str, platform: str, uses_torch: bool = False) -> dict[str, float]:
    """Measures the rates of a large matrix product and copy in JAX, or in PyTorch.

    Returns:
      FLOP/s of the product of two square matrices of `dtype`, and bytes/s, read and written, of
      negating an array far larger than the caches; of the fastest of ten runs each.
    """
    side, size = (2048, 2**28) if platform == "cpu" else (8192, 2**30)
    length = size // jnp.dtype(dtype).itemsize
    product, negative = (_torch_work if uses_torch else _jax_work)(dtype, platform, side, length)
    return {
        "matmul_flops_per_second": 2 * side**3 / _shortest(product),
        "copy_bytes_per_second": 2 * size / _shortest(negative),
    }


Work = Callable[[], Any]  # Returns when it is done.


def _jax_work(dtype: str, platform: str, side: int, length: int) -> tuple[Work, Work]:
    del platform
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    array = jnp.ones((length,), dtype)
    # With a float32 result: on CPUs XLA would else widen factors of bfloat16 first.
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    negative = jax.jit(jnp.negative)
    return (
        lambda: jax.block_until_ready(product(square, square)),
        lambda: jax.block_until_ready(negative(array)),
    )


def _torch_work(dtype: str, platform: str, side: int, length: int) -> tuple[Work, Work]:
    import torch

    device = "cuda" if platform == "gpu" else platform
    square = torch.randn(side, side, dtype=getattr(torch, dtype), device=device)
    array = torch.ones(length, dtype=square.dtype, device=device)

    def done(function: Callable[..., Any], *arguments: Any) -> None:
        function(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()

    return functools.partial(done, torch.mm, square, square), functools.partial(
        done, torch.neg, array
    )


def _shortest(work: Work) -> float:
    seconds = []
    for _ in range(11):  # The first compiles.
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def least_work(model: str, mode: str, dtype: str, batch: int, image_size: int) -> tuple[int, int]:
    """What a step cannot do without: FLOPs, and bytes between the device and its memory.

    FLOPs are twice the multiply-accumulates of matrix products and convolutions; training has three
    times those of the forward pass. Bytes are those of a program in which every block, and every
    downsampling, is fused into one pass, and nothing inside is stored:

    - forward, each block reads and writes its map, each downsampling reads one map and writes the
      next (the first reads the images), and each parameter is read once;
    - in training the backward pass reads the input of each and the gradient of its output, writes
      the gradient of its input (but not of the images), and reads each parameter once more; AdamW
      reads and writes each parameter and its two moments in float32.

    Maps, images and parameters count in `dtype`.

    Returns:
      FLOPs and bytes of one step, over the whole batch.
    """
    spec = ModelSpec(model, IMAGENET_1K_CLASSES, {"dtype": dtype})
    params = spec.abstract_params()
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), jnp.float32)
    flops = 2 * count_macs(spec.function(), params, images)
    maps = jax.eval_shape(lambda images: spec.create().features(images), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    sizes = [images.size, *(each.size for each in maps)]
    forward = sum(sizes[:-1]) + sum(sizes[1:])
    forward += sum(2 * size * depth for size, depth in zip(sizes[1:], spec.depths, strict=True))
    itemsize = jnp.dtype(dtype).itemsize
    if mode == "infer":
        return flops, (forward + parameters) * itemsize
    backward = 2 * sum(sizes[:-1]) - images.size + sum(sizes[1:])
    backward += sum(3 * size * depth for size, depth in zip(sizes[1:], spec.depths, strict=True))
    moved = (forward + backward + 2 * parameters) * itemsize
    return 3 * flops, moved + parameters * OPTIMIZER_BYTES


def peak_memory(uses_torch: bool) -> int:
    """The most bytes this process ever held on its device, with compilation and all settings tried.

    On CPU it is the resident memory of the whole process, libraries included.
    """
    if uses_torch and sys.modules["torch"].cuda.is_initialized():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if not uses_torch and jax.default_backend() != "cpu":
        return (jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"]
    # Not from `resource`, which counts the memory of the process that started this one as well.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def sentence(error: Exception) -> str:
    """An error as results record it, in one line."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{kind}{error}".splitlines()[0]


def summary(settings: dict[str, Any], records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a results file holds.

    Args:
      settings: what was run.
      records: what each contestant gave, each that could be measured with `limits`.
    """
    measured = [record.pop("limits") for record in records.values() if "limits" in record]
    # The fastest that anybody reached: libraries differ in how much of the device they use.
    limits = {name: max(found[name] for found in measured) for name in measured[0]}
    fields = ("model", "mode", "dtype", "batch", "image_size")
    flops, moved = least_work(*(settings[field] for field in fields))
    bound = max(flops / limits["matmul_flops_per_second"], moved / limits["copy_bytes_per_second"])
    for record in records.values():
        if "error" not in record:
            seconds = statistics.median(record["rounds_seconds_per_step"])
            record["seconds_per_step"] = seconds
            record["images_per_second"] = settings["batch"] / seconds
            record["roofline_fraction"] = bound / seconds
    speed = records["ours"]["images_per_second"]
    versions = {"convnext_jax": convnext_jax.__version__}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return {
        **{name: value for name, value in settings.items() if name != "contestant"},
        **this_device(),
        "measured": datetime.date.today().isoformat(),
        "versions": versions,
        **limits,
        "least_flops_per_step": flops,
        "least_bytes_per_step": moved,
        "roofline_seconds_per_step": bound,
        "contestants": records,
        "ratios": {
            name: speed / record["images_per_second"]
            for name, record in records.items()
            if name != "ours" and "error" not in record
        },
    }


def write_result(folder: Path | None, result: Mapping[str, Any]) -> None:
    """Writes a result into its file; None is the project's directory, and rewrites the tables."""
    directory = RESULTS if folder is None else folder
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(result[field] for field in ("model", "mode", "device", "dtype"))
    (directory / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    if folder is None:
        write_tables()


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of `benchmarks.models` in a directory, by file name."""
    paths = sorted([*folder.glob("*-infer-*.json"), *folder.glob("*-train-*.json")])
    found = {path.name: json.loads(path.read_text()) for path in paths}
    return {name: result for name, result in found.items() if "contestants" in result}


def read_detection(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of `benchmarks.detection` in a directory, by file name."""
    paths = sorted(folder.glob("detection-*.json"))
    return {path.name: json.loads(path.read_text()) for path in paths}


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The document's generated part: a table for each hardware."""
    by_hardware: dict[str, list[Mapping[str, Any]]] = {}
    order = lambda r: (r["model"], r["mode"], r["dtype"] != "float32")  # noqa: E731
    for result in sorted(results, key=order):
        by_hardware.setdefault(result["hardware"], []).append(result)
    lines = []
    for hardware, group in sorted(by_hardware.items()):
        used = {f"{name} {v}" for result in group for name, v in result["versions"].items()}
        lines += ["", f"{hardware}; {', '.join(sorted(used))}:", ""]
        lines += [
            "| model, batch, pixels | step | dtype | contestant | images/s | ours / it |"
            " of the roofline | peak memory | first step |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for result in group:
            lines += [_row(result, name) for name in result["contestants"]]
    return "\n".join(lines[1:]) if lines else "Not measured yet."


def _row(result: Mapping[str, Any], name: str) -> str:
    record = result["contestants"][name]
    what = [f"`{result['model']}`, {result['batch']}, {result['image_size']}"]
    what += [result["mode"], result["dtype"]]
    if "error" in record:
        cells = [*what, name, f"not measured: {record['error']}".replace("|", "/"), *[""] * 4]
    else:
        setting = f" ({record['setting']})" if record["setting"] else ""
        ratio = f"{result['ratios'][name]:.2f}" if name in result["ratios"] else ""
        cells = [*what, f"{name}{setting}", f"{record['images_per_second']:,.1f}", ratio]
        # Of rates that not all contestants were asked for nothing is said.
        share = record.get("roofline_fraction")
        cells += ["" if share is None else f"{share:.0%}"]
        cells += [f"{record['peak_memory_bytes'] / 2**30:.1f} GiB"]
        cells += [f"{record['first_step_seconds']:.1f} s"]
    return f"| {' | '.join(cells)} |"


def write_tables() -> None:
    """Rewrites the part `models` of docs/performance.md from the committed results."""
    document = ROOT / "docs" / "performance.md"
    part = table(read_results(RESULTS).values())
    document.write_text(rewrite(document.read_text(), {"models": part}))


def fallen(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[str]:
    """Lines about the ratios of `old` that fell by more than the share `tolerance` in `new`.

    Of ratios above `FAR`: by more than half.
    """
    lines = []
    for peer, ratio in old["ratios"].items():
        if peer not in new["ratios"]:
            error = new.get("contestants", {}).get(peer, {}).get("error", "it did not run")
            lines.append(f"{peer} could not be measured: {error}")
        elif new["ratios"][peer] < ratio * (1 - (tolerance if ratio < FAR else 0.5)):
            lines.append(f"{new['ratios'][peer]:.2f} times {peer}, was {ratio:.2f} times")
    return lines


def _fallen_twice(
    name: str,
    old: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
    tolerance: float,
) -> list[str]:
    """What fell in two measurements, by the better one: peers that are slow scatter most."""
    found = measure()
    lines = fallen(old, found, tolerance)
    if not lines:
        return []
    print("\n".join(f"{name}: {line}; once more" for line in lines), flush=True)
    again = measure()
    both = [each["ratios"] for each in (found, again)]
    best = {peer: max(r[peer] for r in both if peer in r) for peer in both[0] | both[1]}
    return fallen(old, {**again, "ratios": best}, tolerance)


def read_others(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of all others that are measured again, in a directory, by file name."""
    paths = [*folder.glob("cpu_forms-*.json"), *folder.glob("creating-*.json")]
    forms = {path.name: json.loads(path.read_text()) for path in sorted(paths)}
    inputs = {path.name: json.loads(path.read_text()) for path in folder.glob("input-*.json")}
    return forms | {name: with_input_ratios(found) for name, found in inputs.items()}


def _plans_changed(folder: Path) -> bool:
    files = (folder / file.name for file in (tpu_step.FILE, gpu_step.FILE))
    tpu, gpu = (json.loads(file.read_text()) for file in files)
    again, changed = plan_again(tpu, gpu), False
    for name, ratios in plan_ratios(tpu, gpu).items():
        lines = fallen({"ratios": ratios}, {"ratios": again[name]}, PLAN_TOLERANCE)
        changed = changed or bool(lines)
        print("\n".join(f"{name}: {line}" for line in lines or ["as before"]), flush=True)
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=0.2, help="share a ratio may fall by")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-seconds", type=float, default=2.0)
    plans = "compile for TPUs and GPUs again instead, which needs their compilers"
    parser.add_argument("--plans", action="store_true", help=plans)
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the files")
    flags = parser.parse_args(arguments)
    if not 0 <= flags.tolerance < 1:
        parser.error(f"--tolerance (={flags.tolerance}) must be in [0, 1)")
    if flags.plans:
        sys.exit(int(_plans_changed(flags.results)))
    device, compared, failed = this_device()["device"], 0, False
    known = read_results(flags.results) | read_detection(flags.results) | read_others(flags.results)
    for name, result in known.items():
        if result["device"] != device:
            print(f"{name}: skipped, this device is {device}")
            continue
        compared += 1
        if "contestants" in result:
            measure = functools.partial(measure_again, result, flags.rounds, flags.round_seconds)
        else:
            measure = functools.partial(OTHERS[name.partition("-")[0]], result, flags.rounds)
        try:
            lines = _fallen_twice(name, result, measure, flags.tolerance)
        except subprocess.CalledProcessError as error:  # which said why; the others are for now
            lines = [f"could not be measured again: exit status {error.returncode}"]
        failed = failed or bool(lines)
        print("\n".join(f"{name}: {line}" for line in lines or ["as fast as before"]), flush=True)
    if not compared:
        sys.exit(f"nothing was compared: {flags.results} has no results of this device ({device})")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
