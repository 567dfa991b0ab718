"""What the files of a run say, as sections of a page."""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.constants import EXAMPLES_FILE, PARAMETERS
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelSpec
from convnext_jax.report import page
from convnext_jax.report.curves import Curve, chart
from convnext_jax.training.reporting import (
    CONFIG_FILE,
    METRICS_FILE,
    is_evaluation,
    read_json,
    read_records,
)
from convnext_jax.training.summary import SUMMARY_FILE
from convnext_jax.tree import flatten_with_names

# What an evaluation may say of each task's models, as fractions: the name, and people's for it.
_SCORES = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mean IoU",
    "macc": "mean accuracy",
    "aacc": "accuracy of all pixels",
    "box_ap": "AP of boxes",
    "box_ap50": "AP of boxes at an IoU of 0.5",
    "mask_ap": "AP of masks",
    "mask_ap50": "AP of masks at an IoU of 0.5",
}


class Record(NamedTuple):
    """The files of a run.

    Attributes:
      name: of its folder.
      config: as `config.json` has it.
      training: records of steps.
      evaluations: records of evaluations.
      summary: `summary.json`; empty before the end.
    """

    name: str
    config: dict[str, Any]
    training: list[dict[str, float]]
    evaluations: list[dict[str, float]]
    summary: dict[str, Any]


def read(workdir: Path) -> Record:
    """Reads the files of a run; raises InputError if it is none."""
    config = read_json(workdir / CONFIG_FILE) if workdir.is_dir() else None
    found = read_records(workdir / METRICS_FILE) if workdir.is_dir() else []
    records = [record for record in found if isinstance(record, dict) and "step" in record]
    if not isinstance(config, dict) or not {"model", "data"} <= config.keys() or not records:
        raise InputError(
            f"{workdir} must be the workdir of a run, with {CONFIG_FILE} and {METRICS_FILE}"
        )
    return Record(
        workdir.resolve().name,
        config,
        [record for record in records if "loss" in record],
        [record for record in records if is_evaluation(record)],
        read_json(workdir / SUMMARY_FILE) or {},
    )


def title(run: Record) -> str:
    """Model and dataset."""
    return f"{run.config['model']['name']} on {run.config['data']['name']}"


def results(run: Record) -> dict[str, str]:
    """The main results, by what they are called."""
    found: dict[str, str] = {}
    if run.evaluations:
        last = run.evaluations[-1]
        which = "ema" if any(key.startswith("eval_ema_") for key in last) else "params"
        for name, words in _SCORES.items():
            value = last.get(f"eval_{which}_{name}")
            if value is not None and math.isfinite(value):
                found[words] = f"{value:.2%}"
        found["evaluated"] = PARAMETERS[which]
    last = (run.training or run.evaluations)[-1]
    found["steps"] = f"{int(last['step']):,}"
    found["epochs"] = f"{last['epoch']:g}"
    if "seconds" in run.summary:
        found["time"] = str(datetime.timedelta(seconds=round(run.summary["seconds"])))
    for key, words in (("parameters", "parameters"), ("images_per_second", "images/s")):
        if key in run.summary:
            found[words] = f"{run.summary[key]:,.0f}"
    if "devices" in run.summary:
        found["machine"] = run.summary["devices"]
    return found


def curves(runs: Sequence[Record]) -> str:
    """Loss, scores, learning rate, speed and waiting, of one run or of several."""
    several = len(runs) > 1

    def of(number: int, words: str) -> str:
        return (
            f"{runs[number].name}: {words}"
            if several and words
            else (runs[number].name if several else words)
        )

    def training(key: str, words: str = "", scale: float = 1.0) -> list[Curve]:
        found = []
        for number, run in enumerate(runs):
            rows = [record for record in run.training if key in record]
            x, y = ([record[k] for record in rows] for k in ("epoch", key))
            values = [scale * v for v in _finite(y)]
            found.append(
                Curve(of(number, words), x, values, number, dashed=several and bool(words))
            )
        return found

    def evaluated(metric: str, scale: float) -> list[Curve]:
        found = []
        for number, run in enumerate(runs):
            for which, words in PARAMETERS.items():
                key = f"eval_{which}_{metric}"
                rows = [record for record in run.evaluations if key in record]
                if not rows:
                    continue
                x, y = ([record[k] for record in rows] for k in ("epoch", key))
                label = of(number, f"held out, {words}")
                # Those of one run in colours of their own; of several only what is evaluated, the
                # average where there is one, and what is training is dashed.
                place = number if several else 1 + list(PARAMETERS).index(which)
                values = [scale * value for value in _finite(y)]
                if not (several and which == "params" and found and found[-1].run == number):
                    found.append(Curve(label, x, values, place))
        return found

    scores = [name for name in _SCORES if evaluated(name, 1)][:1]
    speeds = training("images_per_second")
    drawn = [
        chart("loss", "epoch", [*training("loss", "training"), *evaluated("loss", 1)]),
        *(chart(f"held-out {_SCORES[n]} (%)", "epoch", evaluated(n, 100)) for n in scores),
        chart("learning rate", "epoch", training("learning_rate"), legend=several),
        chart("images a second", "epoch", speeds, legend=several),
        chart(
            "waiting for data (% of the time)",
            "epoch",
            training("data_wait_fraction", scale=100),
            legend=several,
        ),
        chart("norm of the gradient", "epoch", training("gradient_norm"), legend=several),
    ]
    return page.section("Curves", page.charts(drawn))


def _finite(values: Sequence[float]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def settings(run: Record, spec: ModelSpec | None) -> str:
    """The config, the parameters, if the model is known, and the summary; folded up."""
    rows = [[key, _text(value)] for key, value in _flat(run.config).items()]
    parts = [page.folded(f"Config, {len(rows)} keys", page.table(["key", "value"], rows))]
    if spec is not None:
        shapes = flatten_with_names(spec.abstract_params())
        listed = [
            [name, "×".join(map(str, leaf.shape)), int(leaf.size)] for name, leaf in shapes.items()
        ]
        total = sum(leaf.size for leaf in shapes.values())
        parts.append(
            page.folded(f"Parameters, {total:,}", page.table(["name", "shape", "number"], listed))
        )
    facts = [[key, _text(value)] for key, value in run.summary.items() if not _nested(value)]
    if facts:
        parts.append(page.folded("Summary", page.table(["", ""], facts)))
    return page.section("Settings", *parts)


def differences(runs: Sequence[Record]) -> str:
    """Results and what the configs differ in, a column for each run."""
    names = [run.name for run in runs]
    found = [results(run) for run in runs]
    keys = list(dict.fromkeys(key for result in found for key in result))
    rows = [[key, *(result.get(key, "") for result in found)] for key in keys]
    configs = [_flat(run.config) for run in runs]
    changed = [
        [key, *(_text(config.get(key, "")) for config in configs)]
        for key in dict.fromkeys(key for config in configs for key in config)
        if len({_text(config.get(key)) for config in configs}) > 1
    ]
    return page.section("Results", page.table(["", *names], rows)) + page.section(
        "What differs", page.table(["key", *names], changed) if changed else page.note("Nothing.")
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def examples(workdir: Path) -> list[str]:
    """The page of segmented examples that a run drew, if it did."""
    file = workdir / EXAMPLES_FILE
    if not file.exists():
        return []
    with Image.open(file) as opened:
        sheet = opened.convert("RGB")
        sheet.thumbnail((1200, 4800))
    said = page.note("Image, truth and prediction.")
    return [page.section("Examples", said, page.picture(sheet, alternative="examples"))]


def write(
    workdirs: Sequence[Path],
    file: Path,
    look: Callable[[], list[str]] | None = None,
    spec: ModelSpec | None = None,
) -> list[str]:
    """Writes the page of one run, or of several side by side, at once.

    Args:
      workdirs: of the runs.
      file: to write.
      look: of one run, gives further sections, on what the model does on examples.
      spec: of one run, its model, if it is known.

    Returns:
      What is missing on the page, sentences.

    Raises:
      InputError: a workdir is none.
      OSError: the file cannot be written.
    """
    runs = [read(workdir) for workdir in workdirs]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(at)) for run, at in zip(runs, workdirs, strict=True)]
    problems = []
    if len(runs) == 1:
        (run,) = runs
        sections = [page.tiles(results(run)), curves(runs)]
        try:
            sections += look() if look is not None else []
        except Exception as error:  # of the data, or of a device: the curves are there all the same
            said = str(error).encode("utf-8", "backslashreplace").decode()
            reason = " ".join(said.split())
            problems.append(f"examples could not be looked at: {reason}")
            sections.append(page.section("Examples", page.note(problems[-1])))
        sections += examples(workdirs[0])
        text = page.document(title(run), [*sections, settings(run, spec)])
    else:
        text = page.document(
            " · ".join(dict.fromkeys(map(title, runs))), [curves(runs), differences(runs)]
        )
    # Names of files may be no text.
    write_at_once(file, text.encode("utf-8", "backslashreplace"))
    return problems
