"""A plan as text: a line as soon as something is known, and a table in the end."""

from collections.abc import Sequence
from typing import Any

from convnext_jax.planning.machines import GIB


def answer(row: dict[str, Any]) -> str:
    """What matters most of a variant, in a line."""
    said = f"{row['variant']}: {'fits' if row['fits'] else 'does NOT fit'}, {_room(row)}"
    if not row["fits"]:
        return said
    said += f", {row['memory']['total'] / GIB:.2f} GiB used; a step takes"
    said += f" {row['step_seconds'] * 1e3:.1f} ms"
    said += " by the compiler's estimate" if row["compute_from"] == "compiler" else " at least"
    said += f", the run {row['hours']:.1f} h"
    return f"{said}, ${row['cost']:,.2f}" if "cost" in row else said


def table(result: dict[str, Any]) -> str:
    """The plan as text: a line for each quantity, a column for each variant."""
    rows = result["variants"]
    lines: list[tuple[str, list[str]]] = [("", [row["variant"] for row in rows])]

    def add(name: str, show: Any) -> None:
        cells = []
        for row in rows:
            try:
                cells.append(show(row))
            except (KeyError, TypeError):  # not known of this variant
                cells.append("-")
        if any(cell != "-" for cell in cells):
            lines.append((name, cells))

    def gib(value: float) -> str:
        return f"{value / GIB:.2f} GiB"

    add("fits", lambda r: f"{'yes' if r['fits'] else 'NO'}, {_room(r)}")
    add("images a chip at once", lambda r: f"{r['per_device_batch']} x {r['micro_batches']}")
    add("largest that fits", lambda r: str(r["largest_per_device_batch"] or "not found"))
    for name in ("parameters", "optimizer", "moving average", "batch", "temporary", "program"):
        add(name, lambda r, name=name: gib(r["memory"][name]))
    add("memory in all", lambda r: gib(r["memory"]["total"]))
    add("FLOP a chip and step", lambda r: f"{r['flops'] / 1e12:.3f} T")
    add("bytes accessed", lambda r: f"{r['bytes_accessed'] / 1e9:.1f} GB")
    kinds = sorted({kind for row in rows for kind in row.get("collectives", {})})
    for kind in kinds:
        add(kind, lambda r, kind=kind: _exchange(r["collectives"][kind], r["dtypes"][kind]))
    add("compute, at least", lambda r: _least(r["compute_seconds"], r))
    if not result["gpu"]:
        add("  schedules alone", lambda r: _least(r["schedule_seconds"], r))
    add("  memory alone", lambda r: _least(r["memory_seconds"], r))
    add("  products alone", lambda r: _least(r["matrix_seconds"], r))
    add("compiler's estimate", lambda r: f"{r['compiler_seconds'] * 1e3:.1f} ms")
    if result["gpu"]:
        add("kernels, below 1 MB", lambda r: f"{r['instructions']}, {r['small_instructions']}")
    add("exchange, at best", lambda r: f"{r['exchange_seconds'] * 1e3:.2f} ms")
    if any(row.get("network_bytes") for row in rows):
        apart = "hosts" if result["gpu"] else "slices"
        add(f"between {apart}, a chip", lambda r: f"{r['network_bytes'] / 1e6:.2f} MB")
        add(f"between {apart}, at best", lambda r: f"{r['network_seconds'] * 1e3:.2f} ms")
    add("images/s", lambda r: f"{r['images_per_second']:,.0f}")
    add("processors read", lambda r: f"{r['run']['input']:,.0f}")
    for name in ("start", "steps", "evaluations", "saves"):
        add(f"{name}, in all", lambda r, name=name: _duration(r["run"][name]))
    add("the whole run", lambda r: f"{r['hours']:.1f} h")
    add("cost", lambda r: f"${r['cost']:,.2f}")
    add("images/s a host", lambda r: f"{r['data']['needed']:,.0f}")
    add("a bucket gives", lambda r: f"{r['data']['bucket']:,.0f}")
    add("opening its files", lambda r: _duration(r["data"]["opening_seconds"]))
    add("copying the data", lambda r: _duration(r["data"]["copy_seconds"]))
    add("best place of the data", lambda r: r["data"]["best"])
    widths = [max(len(cells[i]) for _, cells in lines) for i in range(len(rows))]
    first = max(len(name) for name, _ in lines)
    text = [
        f"{result['config']} on {result['topology']}: {result['chips']} chips of"
        f" {gib(result['hbm'])}; {result['model']}, {result['dtype']}, {result['num_classes']}"
        f" classes; batch {result['global_batch']}, {result['steps']:,} steps",
        "",
    ]
    for name, cells in lines:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        text.append(f"{name.ljust(first)}  {'  '.join(padded)}".rstrip())
    if any(row.get("quick") for row in rows):
        text += ["", *QUICK]
    if any("compute_seconds" in row for row in rows):
        text += ["", *(GPU_NOTES if result["gpu"] else NOTES)]
    if any(row.get("compute_from") == "compiler" for row in rows):
        text += NO_SCHEDULES
    return "\n".join(text)


def _least(seconds: float, row: dict[str, Any]) -> str:
    """A part of the lower bound; `-` where there is none."""
    return "-" if row["compute_from"] == "compiler" else f"{seconds * 1e3:.1f} ms"


# What the numbers are; docs/scaling.md says more.
NOTES = (
    "Memory is that of one chip. Compute is a lower bound, not a measurement: the sum, over the",
    "instructions of a step, of the longest of its schedule (the length of its machine code), its",
    "bytes over the memory's bandwidth and its matrix products over the peak. Stalls, waiting for",
    "copies, copies ahead of use and the code between instructions are left out: images/s are at",
    "most, hours and cost at least what is said, as far as compute makes them. The compiler's",
    "estimate, from before it has made code, is off by factors, both ways. Exchange is what the",
    "chip's links need at full bandwidth, added as if nothing overlapped. Bytes accessed count a",
    "loop once. Start, evaluations, saves and the data are arithmetic on rates that",
    "convnext_jax/planning/whole_run.py lists; the steps are as if the input kept up.",
    "Between slices: what a chip sends, over its share of the host's network cards (v5e 3.1 GB/s,",
    "v6e 12.5 GB/s, by Cloud TPU's documentation; of others none is published: no time is added).",
)
GPU_NOTES = (
    "Memory is that of one GPU, against what JAX takes of it: three quarters, or the share that",
    "XLA_PYTHON_CLIENT_MEM_FRACTION says. Compute is a lower bound, not a measurement: the sum,",
    "over the kernels of a step, of the longer of its bytes over the memory's bandwidth and its",
    "products over the peak; arithmetic that is no product and launches are left out. It was",
    "compiled without the GPU, so nothing is tuned: on the GPU products and convolutions may be",
    "other kernels. Exchange is what NVLink needs within a host at full bandwidth, and between",
    "hosts a network card for each GPU, as NVIDIA's DGX have them, added as if nothing",
    "overlapped. Start, evaluations, saves and the data are arithmetic on rates that",
    "convnext_jax/planning/whole_run.py lists; the steps are as if the input kept up.",
)
QUICK = (
    "COMPILED IN HASTE: the run's own program takes less time (see docs/scaling.md)",
    "and a little more memory.",
)
# Where there is no better time than the compiler's.
NO_SCHEDULES = (
    "THE COMPILER WROTE NO SCHEDULES that could be read: where compute has no lower bound, times",
    "are by the compiler's estimate, which may be too long or too short by a factor of two.",
)


def _room(row: dict[str, Any]) -> str:
    room = row["room"]
    if room is None:
        return "by an unknown amount"
    return f"{abs(room) / GIB:.2f} GiB {'free' if room >= 0 else 'too much'}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _exchange(total: dict[str, int], dtypes: Sequence[str]) -> str:
    return f"{total['count']}, {total['bytes'] / 1e6:.1f} MB {' '.join(dtypes)}"
