"""What a run tells: a progress bar or log lines, `metrics.jsonl`, TensorBoard events."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from convnext_jax.checkpointing.steps import write_at_once
from convnext_jax.constants import PARAMETERS
from convnext_jax.errors import RunError
from convnext_jax.progress import terminal_size
from convnext_jax.training.task import Metric

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
TENSORBOARD = "tensorboard"


class Reporter:
    """Writes metrics and shows progress; on all processes but the first it does neither."""

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        metric: Metric,
        evaluation: Mapping[str, float] | None = None,
        active: bool = True,
        tensorboard: bool = True,
    ) -> None:
        """Continues the records of an earlier run in the same directory.

        Args:
          workdir: where `metrics.jsonl` and `tensorboard/` go.
          start_step: steps already done. What was recorded after them, by a run that was killed
            before its next checkpoint, is dropped: it will be recorded again.
          total_steps: of the whole run.
          metric: the result of an evaluation that is printed.
          evaluation: the record of the evaluation after `start_step`, if that is done.
          active: whether this process reports.
          tensorboard: whether to write TensorBoard events.
        """
        self._active = active
        self._skipped = set[str]()
        self._total_steps = total_steps
        self._metric = metric
        self._start = (start_step, time.perf_counter())
        if not active:
            return
        self._workdir = workdir
        lost = cut_records(workdir / METRICS_FILE, start_step, evaluation)
        # Unbuffered: what is recorded is there when the process is killed.
        self._records = (workdir / METRICS_FILE).open("ab", buffering=0)
        self._tensorboard = _TensorBoard(workdir / TENSORBOARD) if tensorboard else None
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            smoothing=0.05,
            disable=not sys.stderr.isatty(),
            **terminal_size(),
        )
        if lost:
            self.line(f"{workdir / METRICS_FILE}: {lost} lines were no records and are dropped")

    def start(self, params: Any, config: dict[str, Any], *, table: bool = False) -> None:
        """Prints the parameters; writes `config.json`, naming keys that have changed.

        Args:
          params: parameter tree.
          config: the resolved config, as nested dictionaries.
          table: each parameter with its shape, instead of their number.
        """
        if not self._active:
            return
        if table:
            from clu import parameter_overview

            self.line(parameter_overview.get_parameter_overview(params, include_stats=False))
        else:
            leaves = jax.tree.leaves(params)
            count, size = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
            self.line(f"parameters: {count:,} in {len(leaves)} arrays, {size / 2**20:,.1f} MiB")
        path = self._workdir / CONFIG_FILE
        earlier = read_json(path)
        if earlier is not None:
            before, now = flat(earlier), flat(config)
            for key in sorted(before.keys() | now.keys()):
                if before.get(key) != now.get(key):
                    self.line(f"config changed: {key} was {before.get(key)}, is {now.get(key)}")
        write_at_once(path, json.dumps(config, indent=2) + "\n")
        if self._tensorboard is not None:
            self._tensorboard.settings(flat(config))

    def begin(self) -> None:
        """Says that steps begin now: what came before does not count in the estimate of the end."""
        self._start = (self._start[0], time.perf_counter())

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        if self._active and not self._bar.disable:
            self._bar.update(step - self._bar.n)

    def line(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._active:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Records training metrics; see `training.loop` for their names and units."""
        if not self._active:
            return
        self._record(step, metrics)
        loss, speed = f"{metrics['loss']:.4f}", f"{metrics['images_per_second']:.0f} images/s"
        if self._bar.disable:
            self.line(
                f"step {step}/{self._total_steps}  epoch {metrics['epoch']:.1f}  loss {loss}"
                f"  lr {metrics['learning_rate']:.2e}  {speed}  ETA {self._eta(step)}"
            )
        else:
            self._bar.set_postfix_str(f"loss {loss}, {speed}")

    def pictures(self, step: int, images: jax.Array) -> None:
        """Shows in TensorBoard what the model was fed with, uint8 [n, H, W, 3]."""
        if self._active and self._tensorboard is not None:
            self._tensorboard.pictures(step, np.asarray(images))

    def skipped(self, examples: dict[int, str]) -> None:
        """Prints those of the examples skipped so far that it has not printed yet."""
        for reason in examples.values():  # which names the split too
            if reason in self._skipped:
                continue
            self._skipped.add(reason)
            line = f"skipped {len(self._skipped)}: {reason}"
            if self._active:
                self.line(line)
            else:  # each process reads images of its own
                print(f"process {jax.process_index()} {line}", flush=True)

    def evaluation(self, step: int, epoch: float, results: dict[str, dict[str, float]]) -> None:
        """Records and prints what an `Evaluator` found, for each set of parameters."""
        if not self._active:
            return
        self._record(step, evaluation_record(epoch, results))
        scores = ", ".join(
            f"{PARAMETERS[name]}: {self._metric.label} {result[self._metric.name]:.2%}"
            + (f" (loss {result['loss']:.4f})" if "loss" in result else "")
            for name, result in results.items()
        )
        counts = next(iter(results.values()))
        left_out = f" ({counts['num_skipped']} skipped)" if counts["num_skipped"] else ""
        self.line(
            f"step {step}/{self._total_steps}  evaluated {counts['num_examples']} images{left_out}:"
            f" {scores}"
        )

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        try:
            self._records.write((json.dumps({"step": step} | metrics) + "\n").encode())
        except OSError as error:
            raise RunError(
                f"recording step {step} in {self._records.name} failed: {error}"
            ) from error
        if self._tensorboard is not None:
            self._tensorboard.write(step, metrics)

    def _eta(self, step: int) -> str:
        start_step, start_time = self._start
        rate = (time.perf_counter() - start_time) / max(step - start_step, 1)
        return tqdm.format_interval(int(rate * (self._total_steps - step)))

    def close(self) -> None:
        """Finishes what is still being written."""
        if not self._active:
            return
        self._bar.close()
        self._records.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _TensorBoard:
    """Writes TensorBoard events with clu, in a thread of its own.

    Importing clu's writers imports TensorFlow, which takes seconds; in the thread they pass beside
    the compilation of the step.
    """

    def __init__(self, directory: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._writer = self._thread.submit(self._open, directory)

    @staticmethod
    def _open(directory: Path) -> Any:
        import tensorflow as tf
        from clu import metric_writers

        # A TensorFlow that sees a GPU takes all of its memory.
        tf.config.set_visible_devices([], "GPU")
        return metric_writers.SummaryWriter(str(directory))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        grouped = {tag: metrics[name] for name in metrics if (tag := _tag(name, metrics))}
        self._thread.submit(lambda: self._writer.result().write_scalars(step, grouped))

    def settings(self, config: dict[str, Any]) -> None:
        """Writes the keys of a run, which its plugin for hyperparameters compares runs by."""
        values = {key: _as_setting(value) for key, value in config.items()}
        self._thread.submit(lambda: self._writer.result().write_hparams(values))

    def pictures(self, step: int, images: np.ndarray) -> None:
        grid = {"train/images": images}
        self._thread.submit(lambda: self._writer.result().write_images(step, grid))

    def close(self) -> None:
        self._thread.submit(lambda: self._writer.result().close()).result()
        self._thread.shutdown()


_SPEED = ("images_per_second", "step_seconds", "data_wait_fraction")


def _tag(name: str, record: Mapping[str, float]) -> str:
    """A metric's name in TensorBoard, whose parts are groups there; empty: it is left out."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if is_evaluation(record):
        return ""  # its epoch
    return f"{'speed' if name in _SPEED else 'train'}/{name}"


def _as_setting(value: Any) -> bool | float | str:
    """A value as TensorBoard has hyperparameters; None and lists as text."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def evaluation_record(epoch: float, results: dict[str, dict[str, float]]) -> dict[str, float]:
    """What an `Evaluator` found for each set of parameters, as numbers by name."""
    record = {"epoch": epoch}
    for name, result in results.items():
        record |= {f"eval_{name}_{key}": value for key, value in result.items()}
    return record


def is_evaluation(record: Mapping[str, float]) -> bool:
    """Whether a record is of an evaluation, and not of training."""
    return any(name.startswith("eval_") for name in record)


def read_records(path: Path) -> list[dict[str, float]]:
    """Reads `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    return parse_records(_text(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def parse_records(text: str) -> list[dict[str, float]]:
    """The records in the text of a `metrics.jsonl`.

    Lines that are none are left out: a machine that went down may leave them.
    """
    records = []
    for line in text.split("\n")[:-1]:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def read_json(path: Path) -> dict[str, Any] | None:
    """Reads a file of JSON; None where there is none, or a machine that went down cut it off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def cut_records(path: Path, step: int, evaluation: Mapping[str, float] | None) -> int:
    """Rewrites `metrics.jsonl` as it was when the checkpoint of a step was complete.

    Args:
      path: of the file.
      step: records of later ones go.
      evaluation: of that step, as its checkpoint has it: it takes the place of what is recorded.

    Returns:
      How many lines were no records.
    """
    text = _text(path)
    records = parse_records(text)
    kept = [
        record
        for record in records
        if record["step"] < step or (record["step"] == step and not is_evaluation(record))
    ]
    kept += [] if evaluation is None else [{"step": step} | dict(evaluation)]
    write_at_once(path, "".join(json.dumps(record) + "\n" for record in kept))
    return text.count("\n") - len(records)


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, with sequences as lists, as JSON has them."""
    result = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = list(value) if isinstance(value, tuple) else value
    return result
