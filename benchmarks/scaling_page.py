"""Tables and pictures of what `benchmarks.scaling` planned: `python -m benchmarks.scaling_page`.

Writes the parts of docs/scaling.md and docs/scaling_tables.md that are made from
`benchmarks/results/scaling.json`, and two pictures.
"""

import json
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from benchmarks.pictures import COLOURS, save
from benchmarks.readme import RESULTS, ROOT, rewrite
from benchmarks.scaling import (
    CHIP_COUNTS,
    EXAMPLES,
    FILE,
    PLANS,
    QUICK,
    RUNS,
    SLICES,
    UPDATE_BYTES,
    at,
    config_of,
    key,
    replicated_plans,
    whole_of,
)
from convnext_jax.plan import PREPARED
from convnext_jax.planning.machines import CHIPS, GIB, parse_machine
from convnext_jax.planning.whole_run import WRITE_BYTES_PER_SECOND, feeding

Plans = dict[str, dict[str, Any]]
PARTS = ("matrix products", "other work on images", "update of the parameters", "exchange")
LINES = {"v4": ":", "v5e": "-", "v6e": "--"}


def made(plans: Plans) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Name, run, slice and contents of each plan that fits and has a lower bound, in order."""
    for run, topology, fsdp in PLANS:
        plan = plans.get(key(run, topology, fsdp))
        if plan is not None and plan["fits"] and plan["compute_from"] == "schedules":
            yield run if fsdp == 1 else f"{run}, fsdp {fsdp}", run, topology, plan


def parts_of_step(run: str, topology: str, plan: dict[str, Any]) -> list[float]:
    """Seconds of a step that go into each of `PARTS`."""
    update = (
        UPDATE_BYTES * plan["memory"]["parameters"] / 4 / parse_machine(topology).chip.bandwidth
    )
    products = plan["matrix_seconds"]
    return [
        products,
        plan["compute_seconds"] - products - update,
        update,
        plan["exchange_seconds"],
    ]


def plans_table(plans: Plans) -> str:
    """Each plan, a line: what fits, what a step takes, and what becomes of the run."""
    lines = [
        "| run | slice | images a chip | memory, of | computes at least | of peak | exchange |"
        " images/s at most | steps | evaluations | saves | whole run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run, topology, plan in made(plans):
        whole = whole_of(run, topology, plan)
        peak = plan["flops"] / plan["compute_seconds"] / parse_machine(topology).chip.peak
        lines.append(
            f"| {name} | {topology} | {plan['per_device_batch']} x {plan['micro_batches']} |"
            f" {plan['memory']['total'] / GIB:.2f} of {plan['hbm'] / GIB:.0f} GiB |"
            f" {plan['compute_seconds'] * 1e3:.1f} ms | {peak:.0%} |"
            f" {plan['exchange_seconds'] * 1e3:.2f} ms | {plan['images_per_second']:,.0f} |"
            f" {whole['steps'] / 3600:.2f} h |"
            f" {whole['num_evaluations']}: {whole['evaluations'] / 60:.1f} min |"
            f" {whole['saves'] / 60:.1f} min | {whole['hours']:.2f} h |"
        )
    return "\n".join(lines)


def quick_sentence(plans: Plans) -> str:
    """What the plan in haste took, and how far it is from the run's own program."""
    run, topology, _ = QUICK
    quick, plan = plans.get("quick"), plans.get(key(*QUICK))
    if quick is None or plan is None:
        return "Not compiled yet."
    memory, seconds = (
        quick[part][of] / plan[part][of] if of else quick[part] / plan[part]
        for part, of in (("memory", "total"), ("compute_seconds", ""))
    )
    return (
        f"In haste ConvNeXt-{run} on {topology} in bfloat16 compiles in"
        f" {quick['compile_seconds']:.0f} s on two cores,"
        f" with {memory:.2f} of the memory and {seconds:.2f} times the time that the run's own"
        f" program has."
    )


def details_table(plans: Plans) -> str:
    """Of each plan the parts of its bound, what it exchanges, and what one evaluation costs."""
    lines = [
        "| run | slice | FLOP a chip | schedules | memory | products | compiler's estimate |"
        " all-reduce | other exchange | one evaluation | one save, waited for | written beside |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run, topology, plan in made(plans):
        totals = dict(plan["collectives"])
        reduced = totals.pop("all-reduce", {"bytes": 0})["bytes"]
        others = [f"{kind} {total['bytes'] / 1e6:.0f} MB" for kind, total in totals.items()]
        whole = whole_of(run, topology, plan)
        seconds = [plan[f"{part}_seconds"] for part in ("schedule", "memory", "matrix", "compiler")]
        lines.append(
            f"| {name} | {topology} | {plan['flops'] / 1e12:.2f} T | "
            + " | ".join(f"{each * 1e3:.1f} ms" for each in seconds)
            + f" | {reduced / 1e6:.0f} MB | {', '.join(others) or 'none'} |"
            f" {whole['evaluation']:.2f} s | {whole['save']:.2f} s | {whole['write']:.1f} s |"
        )
    return "\n".join(lines)


def data_table(plans: Plans) -> str:
    """How each planned run is fed."""
    lines = [
        "| run | slice | images/s a host | decoded by its cores, at most | from a bucket |"
        " opening | copy to each host | best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run, topology, plan in made(plans):
        if plan["fsdp"] > 1:
            continue
        fed: dict[str, Any] = feeding(
            parse_machine(topology),
            "classification",
            plan["images_per_second"],
            *PREPARED[config_of(run).data.name],
            EXAMPLES[run],
        )
        lines.append(
            f"| {name} | {topology} | {fed['needed']:,.0f} | {fed['decoded']:,.0f} |"
            f" {fed['bucket']:,.0f} | {fed['opening_seconds'] / 60:.1f} min |"
            f" {fed['copy_seconds'] / 60:.1f} min | {fed['best']} |"
        )
    return "\n".join(lines)


def extrapolated(plans: Plans) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Run, kind of chip and plans of each that can be extrapolated."""
    for topology in SLICES:
        kind = topology.partition(":")[0]
        for run in RUNS:
            found = replicated_plans(plans, run, kind)
            if found:
                yield run, kind, found


def scaling_tables(plans: Plans, images_per_core: float) -> str:
    """Each run on each kind of chip, by number of chips."""
    found = extrapolated(plans)
    return "\n\n".join(_scaling_table(*each, images_per_core) for each in found)


def _scaling_table(run: str, kind: str, plans: list[dict[str, Any]], images_per_core: float) -> str:
    chip, plan = CHIPS[kind], plans[0]
    lines = [
        f"**ConvNeXt-{run} on {kind}**, batch {plan['global_batch']}, {plan['steps']:,} steps",
        "",
        "| chips | images a chip | compute | exchange | images/s | efficiency | steps | whole run |"
        " images/s a host | cores a host |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = at(run, plans, kind, CHIP_COUNTS[0])["images_per_second"] / CHIP_COUNTS[0]
    for chips in CHIP_COUNTS:
        row = at(run, plans, kind, chips)
        host = row["images_per_second"] * chip.host.chips / chips
        lines.append(
            f"| {chips:,} | {row['images_per_chip']:.0f} | {row['compute'] * 1e3:.1f} ms |"
            f" {row['exchange'] * 1e3:.2f} ms | {row['images_per_second']:,.0f} |"
            f" {row['images_per_second'] / chips / first:.0%} |"
            f" {row['step_hours']:.2f} h | {row['hours']:.2f} h |"
            f" {host:,.0f} | {host / images_per_core:.1f} |"
        )
    return "\n".join(lines)


def limits_table(plans: Plans) -> str:
    """Where each run stops to scale at its batch, and what takes the time then."""
    lines = [
        "| run | chip | 80 % up to | 50 % up to | images a chip there | at 4,096: images | update |"
        " exchange |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, kind, found in extrapolated(plans):
        rows = {chips: at(run, found, kind, chips) for chips in CHIP_COUNTS}
        rates = {chips: row["images_per_second"] / chips for chips, row in rows.items()}
        least = rates[CHIP_COUNTS[0]]
        upto = [max(n for n in CHIP_COUNTS if rates[n] >= part * least) for part in (0.8, 0.5)]
        last = rows[CHIP_COUNTS[-1]]
        shares = [(last["compute"] - last["update"]), last["update"], last["exchange"]]
        lines.append(
            f"| {run} | {kind} | {upto[0]:,} chips | {upto[1]:,} chips |"
            f" {rows[upto[0]]['images_per_chip']:.0f}, {rows[upto[1]]['images_per_chip']:.0f} | "
            + " | ".join(f"{share / last['step']:.0%}" for share in shares)
            + " |"
        )
    return "\n".join(lines)


def checked(plans: Plans) -> str:
    """How far a table of one plan is from another plan, at its number of images a chip."""
    large, small = (plans.get(key("T", topology, 1)) for topology in ("v5e:16x16", "v5e:4x4"))
    if large is None or small is None:
        return "Not compiled yet."
    images = small["per_device_batch"]
    seconds = at("T", [large], "v5e", large["global_batch"] // images)["compute"]
    actual = small["compute_seconds"] / small["micro_batches"]
    how = "longer" if seconds > actual else "shorter"
    return (
        f"The table of ConvNeXt-T on v5e has two plans, of {large['per_device_batch']} and {images}"
        f" images a chip. From the first alone a step of {images} images would take"
        f" {seconds * 1e3:.1f} ms instead of {actual * 1e3:.1f} ms,"
        f" {abs(seconds / actual - 1):.0%} {how}: so far off may the other tables be where a chip"
        f" has eight times the images of their plan, and more where it has fewer."
    )


def checkpoint_table(plans: Plans) -> str:
    """Size of checkpoints, and how long they take."""
    lines = ["| run | parameters | checkpoint | written in |", "|---|---|---|---|"]
    for run in RUNS:
        found = [plans[k] for t in SLICES if (k := key(run, t, 1)) in plans]
        if not found:
            continue
        size = found[0]["checkpoint_bytes"]
        lines.append(
            f"| {run} | {found[0]['memory']['parameters'] / 4e6:.1f} M | {size / 1e9:.2f} GB |"
            f" {size / WRITE_BYTES_PER_SECOND:.0f} s |"
        )
    return "\n".join(lines)


def throughput(plans: Plans) -> plt.Figure:
    """Images/s and efficiency over chips, of each run on each kind of chip."""
    figure, (rates, efficiency) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    colours = dict(zip(RUNS, COLOURS, strict=False))
    for run, kind, found in extrapolated(plans):
        seen = [at(run, found, kind, chips)["images_per_second"] for chips in CHIP_COUNTS]
        of_chip = [each / chips for each, chips in zip(seen, CHIP_COUNTS, strict=True)]
        look = {"color": colours[run], "linestyle": LINES[kind]}
        rates.loglog(CHIP_COUNTS, seen, **look)
        efficiency.semilogx(CHIP_COUNTS, [100 * each / of_chip[0] for each in of_chip], **look)
    rates.set_ylabel("images a second, at most")
    efficiency.set_ylabel("efficiency, %")
    efficiency.set_ylim(0, 103)
    for axis in (rates, efficiency):
        axis.set_xlabel("chips, at a global batch of 4096")
        axis.set_xticks(CHIP_COUNTS[::2], [f"{n:,}" for n in CHIP_COUNTS[::2]])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    runs = [Line2D([], [], color=colours[run], label=f"ConvNeXt-{run}") for run in RUNS]
    kinds = [Line2D([], [], color="grey", linestyle=s, label=kind) for kind, s in LINES.items()]
    rates.legend(handles=runs, frameon=False)
    efficiency.legend(handles=kinds, frameon=False)
    return figure


def step_time(plans: Plans) -> plt.Figure:
    """What a step's time goes into, in each plan."""
    rows = list(made(plans))
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.32 * len(rows)), layout="constrained")
    labels = [f"{name}, {topology}" for name, _, topology, _ in rows]
    parts = [parts_of_step(run, topology, plan) for _, run, topology, plan in rows]
    shares = [[100 * part / sum(each) for part in each] for each in parts]
    left = [0.0] * len(rows)
    for number, part in enumerate(PARTS):
        widths = [share[number] for share in shares]
        axis.barh(labels, widths, left=left, label=part, color=COLOURS[number])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of a step")
    axis.legend(ncols=len(PARTS), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """The command."""
    plans = json.loads(FILE.read_text())
    measured = json.loads((RESULTS / "input-cpu-2-cores.json").read_text())
    per_core = measured["transforms"]["500x375"]["training, the whole recipe"]["images_per_second"]
    pages = {
        "scaling": {
            "quick": quick_sentence(plans),
            "plans": plans_table(plans),
            "limits": limits_table(plans),
            "checked": checked(plans),
            "checkpoints": checkpoint_table(plans),
        },
        "scaling_tables": {
            "details": details_table(plans),
            "data": data_table(plans),
            "scaling": scaling_tables(plans, per_core["ours"]),
        },
    }
    for page, parts in pages.items():
        file = ROOT / "docs" / f"{page}.md"
        file.write_text(rewrite(file.read_text(), parts))
    save(throughput(plans), "scaling")
    save(step_time(plans), "step_time")


if __name__ == "__main__":
    main()
