"""What is left to read when a run is over: `summary.json` and `curves.png`."""

import json
import statistics
from pathlib import Path
from typing import Any

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.constants import PARAMETERS
from convnext_jax.training.reporting import (
    METRICS_FILE,
    is_evaluation,
    read_json,
    read_records,
)
from convnext_jax.training.task import Metric

SUMMARY_FILE = "summary.json"
CURVES_FILE = "curves.png"


def write_summary(workdir: Path, facts: dict[str, Any], metric: Metric) -> dict[str, Any]:
    """Writes `summary.json` from the run's records.

    Args:
      workdir: of a run that reached its last step.
      facts: what the records do not say (model, dataset, devices, ...), written along.
      metric: the result of an evaluation that decides.

    Returns:
      What was written: `facts`; `final` and `best`, the last evaluation and the one with the
      highest `metric`, each by set of parameters; `images_per_second` and `data_wait_fraction`,
      medians over the records but the first, in which caches fill. Of a run whose records are lost
      there is only the evaluation of its last checkpoint.
    """
    records = read_records(workdir / METRICS_FILE)
    evaluations = [_nested(record) for record in records if is_evaluation(record)]
    speeds = [record for record in records if "images_per_second" in record]
    summary = dict(facts)
    if evaluations:
        evaluated = "ema" if "ema" in evaluations[-1] else "params"
        summary["evaluated"] = evaluated
        summary["final"] = evaluations[-1]
        summary["best"] = max(evaluations, key=lambda e: (e[evaluated][metric.name], e["step"]))
    for name in ("images_per_second", "data_wait_fraction"):
        if speeds:
            summary[name] = statistics.median(record[name] for record in speeds[1:] or speeds)
    write_at_once(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def _nested(record: dict[str, float]) -> dict[str, Any]:
    """{"eval_ema_loss": x, ...} -> {"ema": {"loss": x, ...}, "step": ..., "epoch": ...}."""
    result: dict[str, Any] = {"step": record["step"], "epoch": record["epoch"]}
    for key, value in record.items():
        if key.startswith("eval_"):
            _, name, metric = key.split("_", 2)
            result.setdefault(name, {})[metric] = value
    return result


def final_line(summary: dict[str, Any], workdir: Path, metric: Metric) -> str:
    """One line for a person: what came out, on how many images, and where the curves are."""
    final, which = summary["final"], summary["evaluated"]
    result, best = final[which], summary["best"]
    label = PARAMETERS[which]
    line = (
        f"{summary['model']} on {summary['dataset']}: {metric.label} {result[metric.name]:.2%}"
        f" ({label}) on {result['num_examples']} images of `{summary['eval_split']}` after"
        f" {final['epoch']:g} epochs (best {best[which][metric.name]:.2%} after {best['epoch']:g})"
    )
    if "images_per_second" not in summary:
        return f"{line}; the records of its training are lost"
    return (
        f"{line}; {summary['images_per_second']:.0f} images/s, waiting for data"
        f" {summary['data_wait_fraction']:.1%} of the time; curves in {workdir / CURVES_FILE}"
    )


def write_curves(workdir: Path, title: str, metric: Metric) -> None:
    """Draws loss, `metric` and learning rate over epochs into `curves.png`, if there are any."""
    records = read_records(workdir / METRICS_FILE)
    training = [record for record in records if "loss" in record]
    if not training:
        return
    import matplotlib.figure  # takes a second, and only this needs it

    evaluations = [record for record in records if is_evaluation(record)]
    names = [name for name in ("params", "ema") if f"eval_{name}_{metric.name}" in evaluations[-1]]
    sets = [(name, PARAMETERS[name]) for name in names]

    # A figure of its own, not pyplot's, which would look for a display.
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    loss, score, rate = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in training]
    evaluated_epochs = [record["epoch"] for record in evaluations]
    loss.plot(epochs, [record["loss"] for record in training], label="training")
    for number, (name, label) in enumerate(sets, start=1):
        color = f"C{number}"
        if f"eval_{name}_loss" in evaluations[-1]:
            values = [record[f"eval_{name}_loss"] for record in evaluations]
            loss.plot(evaluated_epochs, values, ".-", color=color, label=f"held out, {label}")
        values = [100 * record[f"eval_{name}_{metric.name}"] for record in evaluations]
        label = f"{label}: {values[-1]:.2f} %"
        score.plot(evaluated_epochs, values, ".-", color=color, label=label)
    rate.plot(epochs, [record["learning_rate"] for record in training])
    score_title = f"held-out {metric.label} (%)"
    for axes, name in ((loss, "loss"), (score, score_title), (rate, "learning rate")):
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
    loss.legend()
    score.legend(loc="lower right")
    figure.savefig(workdir / CURVES_FILE, dpi=110)


def is_finished(workdir: Path, total_steps: int) -> bool:
    """Whether `summary.json` is there, of a run of so many steps or more."""
    found = read_json(workdir / SUMMARY_FILE) or {}
    return found.get("final", {}).get("step", 0) >= total_steps


def read_summary(workdir: Path) -> dict[str, Any]:
    """Reads `summary.json`."""
    return json.loads((workdir / SUMMARY_FILE).read_text(encoding="utf-8"))
