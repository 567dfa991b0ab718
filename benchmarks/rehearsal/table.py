"""The results of the rehearsal, as Markdown."""

from typing import Any

_DATASETS = {
    "imagenet1k": "ImageNet-1K, 1,281,167 records in 1,024 shards",
    "imagenet22k": "ImageNet-22K, 14,197,122 records in 2,048 shards",
    "folder": "folder of 1,281,167 files",
}


def table(results: dict[str, Any]) -> str:
    """The document's generated part; a part without a result is left out.

    Args:
      results: by name of the part.
    """
    lines = []
    machines = sorted({result["machine"] for result in results.values()})
    if machines:
        lines.append(f"On {'; '.join(machines)}:")
    rows = [
        _steps_row(name, workers, results[f"{dataset}-{workers}"])
        for dataset, name in _DATASETS.items()
        for workers in (2, 32)
        if f"{dataset}-{workers}" in results
    ]
    if rows:
        lines += [
            "",
            "| data | workers alive, of training and evaluation | first step after | memory: first"
            " process, a worker, with the evaluation's all | open files, at most | memory's growth"
            " in 1,000 steps: first process, a worker | evaluation | left behind |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    sentences = {
        "folder-long": _long,
        "evaluate": _evaluate,
        "resume": _resume,
        "xl-1": _large_state,
        "xl-2": _large_state,
        "together": _together,
    }
    for part, sentence in sentences.items():
        if part in results:
            found = results[part]
            lines.append(f"- {_broken(part, found) if 'broken' in found else sentence(found)}")
    return "\n".join(lines).strip()


def _broken(part: str, result: dict[str, Any]) -> str:
    return f"`{part}` broke: {result['broken']}".replace("|", "\\|")


def _steps_row(name: str, workers: int, result: dict[str, Any]) -> str:
    if "broken" in result:
        return f"| {name} | {workers} | {_broken('run', result)} | | | | | |"
    first, last = result["at_first_step"], result["at_last_step"]
    most = result["most_in_evaluation"]
    memory = [_mb(last["main"]["pss"]["max"]), _mb(last["worker"]["pss"]["mean"])]
    files = max(
        [most["files"], *(role["files"]["max"] for seen in (first, last) for role in seen.values())]
    )
    growth = [
        f"{_signed_mb(slope['per_1000_steps'])} ± {slope['noise'] / 1e6:.1f} MB"
        for slope in result["slopes"].values()
    ]
    return (
        f"| {name} | {last['worker']['count']} of 2 x {workers} |"
        f" {result['first_step_seconds']:.0f} s | {', '.join(memory)}, {_gb(most['pss'])} |"
        f" {files} | {', '.join(growth)} | {result['evaluation_seconds']:.0f} s |"
        f" {result['left_behind']} |"
    )


def _long(result: dict[str, Any]) -> str:
    growth = [
        f"{_signed_mb(slope['per_1000_steps'])} ± {slope['noise'] / 1e6:.2f} MB"
        for slope in result["slopes"].values()
    ]
    return (
        f"the folder with 2 workers over {result['steps']:,} steps, of which the first quarter is"
        f" left out: {growth[0]} in 1,000 steps, a worker {growth[1]}"
    )


def _evaluate(result: dict[str, Any]) -> str:
    return (
        f"`evaluate` on all 50,000 images, 2 workers: {result['seconds']:.0f} s,"
        f" {_gb(result['most']['pss'])}"
    )


def _resume(result: dict[str, Any]) -> str:
    return (
        f"batches of {result['batch']:,}: the first step is done {result['start_seconds']:.0f} s"
        f" after the start of a new run, {result['late_seconds']:.0f} s after that of one that goes"
        f" on from step 90,000"
    )


def _large_state(result: dict[str, Any]) -> str:
    count = result["processes"]
    return (
        f"ConvNeXt-XL on {count} process{'es' if count > 1 else ''}: told to go, its state of"
        f" {_gb(result['state_bytes'])} was saved and all had ended with 75 after"
        f" {result['saved_and_left_seconds']:.0f} s; killed when {_gb(result['interrupted_bytes'])}"
        f" of the next save were written, it went on from the one before, restored"
        f" {result['restored_seconds']:.0f} s after the start"
    )


def _together(result: dict[str, Any]) -> str:
    preempted, killed = result["preempted"], result["killed"]
    return (
        f"{result['processes']} processes, {_mb(result['memory']['main']['pss']['mean'])} each:"
        f" first step after {result['first_step_seconds']:.0f} s; one got SIGTERM, and all ended"
        f" with 75 at the same step, within {preempted['seconds']:.0f} s; started again, one was"
        f" killed, and the others ended with 76 within {killed['seconds']:.0f} s; left behind:"
        f" {preempted['left_behind'] + killed['left_behind']}"
    )


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def _signed_mb(size: float) -> str:
    return f"{size / 1e6:+.1f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
