"""The training loop: save, evaluate, take the next batch, step; and again."""

import contextlib
import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.checkpointing.damage import set_damaged_aside
from convnext_jax.checkpointing.manager import Checkpoints
from convnext_jax.checkpointing.reading import abstract_like, restore
from convnext_jax.data.pipeline import Batches
from convnext_jax.data.workers import end_workers
from convnext_jax.errors import Preempted, RunError
from convnext_jax.processes import Preemption, broken_collective, compile_together, is_first
from convnext_jax.training.evaluator import Evaluator
from convnext_jax.training.mirror import Mirror
from convnext_jax.training.reporting import Reporter, evaluation_record
from convnext_jax.training.state import TrainState
from convnext_jax.training.stopwatch import Stopwatch
from convnext_jax.training.task import Metric
from convnext_jax.training.watchdog import Watchdog

# Steps that may be dispatched before the first of them is done: enough to keep the accelerator
# busy, few enough that batches do not pile up in its memory.
_STEPS_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything a training run needs; `builders.build_run` makes it from a config.

    Attributes:
      mesh: the devices.
      abstract_state: shapes and types of the state.
      state_shardings: where its arrays lie; same structure.
      initialize: gives the state before the first step, placed by `state_shardings`.
      train_step: jitted and donating (state, batch) -> (state, numbers named by `metrics`).
      evaluator: for the evaluation split.
      batches: first step -> this process's batches from there to the last step.
      description: stored with every checkpoint.
      plan: a few lines on what will run where, printed at the start.
      global_batch: examples a step.
      steps_per_epoch: optimiser steps.
      total_steps: of the run.
      evaluate_every: steps between evaluations; there is always one at the end.
      save_every: steps between further saves, or None. What is evaluated is saved, too.
      keep_last: newest checkpoints to keep, beside the best.
      log_every: steps that one record of metrics covers.
      profile_steps: steps to profile after the first ones of this process.
      tensorboard: whether to write TensorBoard events.
      log_parameters: whether to print each parameter, instead of their number.
      stop_at_damage: whether a damaged checkpoint ends the run, instead of the one before it being
        used.
      hang_seconds: a step that takes longer is reported with all stacks; 0: never.
      metrics: names of what a step reports.
      metric: the result of an evaluation by which checkpoints are compared.
      stopwatch: of the program's start.
      page: (file, parameters, batch statistics) -> None, draws examples to look at; None: there are
        none to draw.
      pictures: (batch, step) -> uint8 [n, H, W, 3], what the model is fed with in a step, for
        TensorBoard; None: nothing to look at.
      look: likewise -> sections of the report, on what the model does on examples; None: there
        is no report.
    """

    mesh: Mesh
    abstract_state: TrainState
    state_shardings: TrainState
    initialize: Callable[[], TrainState]
    train_step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, jax.Array]]
    evaluator: Evaluator
    batches: Callable[[int], Batches]
    description: dict[str, Any]
    plan: str
    global_batch: int
    steps_per_epoch: int
    total_steps: int
    evaluate_every: int
    save_every: int | None
    keep_last: int
    log_every: int
    profile_steps: int
    tensorboard: bool
    log_parameters: bool
    stop_at_damage: bool
    hang_seconds: float
    metrics: tuple[str, ...]
    metric: Metric
    stopwatch: Stopwatch
    page: Callable[[Path, Any, Any], None] | None = None
    pictures: Callable[[Any, int], jax.Array] | None = None
    look: Callable[[Any, Any], list[str]] | None = None

    @property
    def best_metric(self) -> str:
        """Decides which checkpoint is best: of the moving average, where the run keeps one."""
        which = "params" if self.abstract_state.ema is None else "ema"
        return f"eval_{which}_{self.metric.name}"


def train(
    run: Run, workdir: Path, directory: epath.Path, preemption: Preemption, mirror: Mirror
) -> TrainState:
    """Trains from the newest checkpoint of the run, or from the start, to the last step.

    The initial weights are, by precedence: 1. the run's own checkpoint; 2. those of the config's
    `init_from`; 3. random.

    Args:
      run: what to do.
      workdir: gets `metrics.jsonl`, `tensorboard/` and, if asked for, `profile/`.
      directory: of the run's checkpoints, absolute; all processes see the same one.
      preemption: says when to save and leave.
      mirror: copies the records at each save.

    Returns:
      The final state, which is also saved.

    Raises:
      Preempted: and the run is saved.
      RunError: a loss that is not finite, a save that failed, no checkpoint is whole, or this
        process does not see the newest one.
      Lost: a file system that was asked again and again, or a decoding worker.
      InputError: the run's checkpoint belongs to another model.
    """
    with contextlib.ExitStack() as stack:
        damaged = set_damaged_aside(directory, stop=run.stop_at_damage)
        checkpoints = Checkpoints(directory, keep_last=run.keep_last, best_metric=run.best_metric)
        stack.push(functools.partial(_close, checkpoints))
        start = checkpoints.latest_step() or 0
        run.stopwatch.lap("preparing")
        state = restore_state(run, directory, start) if start else run.initialize()
        run.stopwatch.lap("restoring the checkpoint" if start else "making the first weights")
        evaluated = checkpoints.evaluation(start)
        if evaluated is not None:  # earlier versions stored results alone
            evaluated = {"epoch": start / run.steps_per_epoch} | dict(evaluated)
        reporter = Reporter(
            workdir,
            start_step=start,
            total_steps=run.total_steps,
            metric=run.metric,
            evaluation=evaluated,
            active=is_first(),
            tensorboard=run.tensorboard,
        )
        stack.callback(reporter.close)
        reporter.start(state.params, run.description["config"], table=run.log_parameters)
        reporter.line(run.plan)
        if run.mesh.shape["fsdp"] > 1:
            reporter.line(sharding.overview(state.params, run.state_shardings.params))
        for line in damaged:
            reporter.line(line)
        if start:
            reporter.line(f"resuming after step {start} of {run.total_steps}")
        batches = stack.enter_context(contextlib.closing(run.batches(min(start, run.total_steps))))
        stack.callback(run.evaluator.close)
        watchdog = stack.enter_context(Watchdog(run.hang_seconds))
        meter = _Meter(run, reporter, start, checkpoints)

        def before_evaluation_batch() -> None:
            watchdog.beat(f"an evaluation after step {step}")
            if preemption.noticed():
                raise _EvaluationInterrupted

        train_step = run.train_step
        # Not the first steps: they compile.
        profile_from = start + 1 + _STEPS_IN_FLIGHT
        profile_to = min(profile_from + run.profile_steps, run.total_steps)
        # A run that was made shorter meanwhile may be beyond its end.
        last = max(start, run.total_steps)
        for step in range(start, last + 1):
            evaluate = step == last or step % run.evaluate_every == 0
            save = run.save_every is not None and step % run.save_every == 0
            if step == start:
                # What is due here was done before, except for an evaluation that was interrupted.
                save, evaluate = False, evaluate and start > 0 and evaluated is None
            leave = step < last and preemption.noticed()
            if evaluate or save or (leave and step > start):
                meter.drain()
                with meter.paused():
                    # Writing goes on beside the evaluation, and what is trained is safe from it.
                    watchdog.beat(f"saving step {step}")
                    checkpoints.save(step, _arrays(state), run.description)
                    # Who leaves evaluates when back: there may not be the time for it now.
                    if evaluate and not leave:
                        try:
                            results = run.evaluator(state.candidates(), before_evaluation_batch)
                            reporter.skipped(run.evaluator.skipped)
                            epoch = step / run.steps_per_epoch
                            reporter.evaluation(step, epoch, results)
                            checkpoints.add_evaluation(step, evaluation_record(epoch, results))
                        except _EvaluationInterrupted:
                            leave = True
                    mirror.push()
            if leave:
                watchdog.beat(f"saving step {step}")
                checkpoints.wait()
                checkpoints.close(hurry=True)
                # All is safe: whoever told the run to go may not wait for each worker to end.
                end_workers()
                how = "interrupted" if preemption.interrupted else "preempted"
                raise Preempted(f"{how} {_farewell(step, run.total_steps)}")
            if step == last:
                break
            watchdog.beat(f"step {step + 1}")
            if profile_from < profile_to and step == profile_from:
                jax.profiler.start_trace(str(workdir / "profile"))
            began = time.perf_counter()
            batch = sharding.global_batch(next(batches), run.mesh)
            meter.waited(time.perf_counter() - began)
            if step == start:
                run.stopwatch.lap("waiting for the first batch")
                reporter.line("compiling the step")
                train_step = compile_together(run.train_step, state, batch)
                seconds = run.stopwatch.lap("compiling")
                reporter.line(f"compiled the step in {seconds:.1f} s")
                meter.begin()
                reporter.begin()
            state, metrics = train_step(state, batch)
            if step == start:
                jax.block_until_ready(metrics)
                # Not before: a start that comes to nothing leaves all as it is.
                checkpoints.begin()
                stack.enter_context(preemption.with_work_to_save())
                run.stopwatch.lap("computing")
                seconds = run.stopwatch.seconds
                reporter.line(f"first step done {seconds:.1f} s after the start: {run.stopwatch}")
                if run.pictures is not None:  # on all processes, which share the batch
                    with meter.paused():
                        draw = compile_together(run.pictures, batch, step)
                        reporter.pictures(step, draw(batch, step))
            meter.add(step + 1, metrics)
            reporter.skipped(batches.skipped)
            if profile_from < profile_to and step + 1 == profile_to:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
        checkpoints.wait()
    return state


def _close(checkpoints: Checkpoints, kind: Any, error: BaseException | None, trace: Any) -> None:
    """Waits for what is being written; not where peers are lost, who would have to take part."""
    del kind, trace
    if broken_collective(error) is None:
        checkpoints.close()


class _EvaluationInterrupted(Exception):
    """The machine is about to be taken away during an evaluation."""


def restore_state(run: Run, directory: epath.Path, step: int) -> TrainState:
    """Reads the whole state of a step, placed by `run.state_shardings`."""
    abstract = abstract_like(run.abstract_state, run.state_shardings)
    found = restore(directory, step, _arrays(abstract))
    counter = jax.device_put(np.int32(step), run.state_shardings.step)
    return TrainState(
        step=counter,
        params=found["params"],
        ema=found.get("ema"),
        opt_state=found["optimizer"],
        batch_stats=found.get("batch_stats", {}),
        ema_batch_stats=found.get("ema_batch_stats", run.abstract_state.ema_batch_stats),
    )


def _arrays(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state; nothing for what is empty."""
    arrays = {
        "params": state.params,
        "optimizer": state.opt_state,
        "ema": state.ema,
        "batch_stats": state.batch_stats,
        "ema_batch_stats": state.ema_batch_stats,
    }
    return {name: tree for name, tree in arrays.items() if jax.tree.leaves(tree)}


def _farewell(step: int, total_steps: int) -> str:
    if step == 0:
        return "before the first step; the same command starts again"
    return (
        f"after step {step} of {total_steps}, which is saved; the same command goes on from there"
    )


class _Meter:
    """Collects what the steps report, a little behind them, and passes it on in records.

    A record has the means over its steps of what `Run.metrics` lists (of the learning rate the last
    value), `epoch`, `step_seconds`, `images_per_second` over all devices, and `data_wait_fraction`:
    the share of the time in which the accelerator had nothing to do for want of the next batch.
    """

    def __init__(self, run: Run, reporter: Reporter, start: int, checkpoints: Checkpoints) -> None:
        self._run = run
        self._reporter = reporter
        self._checkpoints = checkpoints
        # Step, its metrics, when it was dispatched, and how long its batch was waited for: records
        # are made later, when further batches have been waited for.
        self._in_flight: deque[tuple[int, jax.Array, float, float]] = deque()
        self._values: list[np.ndarray] = []
        self._waiting = self._waited = 0.0
        self._record_began = time.perf_counter()

    def begin(self) -> None:
        """Says that steps begin now: what came before is in no record."""
        self._waiting, self._record_began = 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Notes the time that getting the next batch took."""
        # While an earlier step still runs, nobody waits.
        busy = self._in_flight and not self._in_flight[-1][1].is_ready()  # pyright: ignore[reportAttributeAccessIssue]
        if not busy:
            self._waiting += seconds

    def add(self, step: int, metrics: jax.Array) -> None:
        """Takes the metrics of a step just dispatched; waits for one dispatched earlier."""
        self._in_flight.append((step, metrics, time.perf_counter(), self._waiting))
        self._waiting = 0.0
        while len(self._in_flight) > _STEPS_IN_FLIGHT:
            # A record ends when its last step was dispatched: by now, later ones may be done too.
            self._take_oldest(until=self._in_flight[0][2])

    def drain(self) -> None:
        """Waits for all steps dispatched so far."""
        while self._in_flight:
            self._take_oldest(until=None)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time within out of the record."""
        began = time.perf_counter()
        yield
        self._record_began += time.perf_counter() - began

    def _take_oldest(self, until: float | None) -> None:
        step, metrics, _, waited = self._in_flight.popleft()
        self._waited += waited
        values = np.asarray(metrics)
        named = dict(zip(self._run.metrics, values.tolist(), strict=True))
        self._reporter.advance(step)
        for name in ("loss", "gradient_norm", "parameter_norm"):
            if not math.isfinite(named[name]):
                raise self._not_finite(step, name, named[name])
        self._values.append(values)
        if step % self._run.log_every == 0 or step == self._run.total_steps:
            self._record(step, time.perf_counter() if until is None else until)
            self._checkpoints.check()

    def _record(self, step: int, until: float) -> None:
        seconds = until - self._record_began
        means = np.stack(self._values).mean(axis=0, dtype=np.float64).tolist()
        metrics = {"epoch": step / self._run.steps_per_epoch}
        metrics |= dict(zip(self._run.metrics, means, strict=True))
        rate = self._run.metrics.index("learning_rate")
        metrics["learning_rate"] = float(self._values[-1][rate])
        metrics["step_seconds"] = seconds / len(self._values)
        metrics["images_per_second"] = self._run.global_batch * len(self._values) / seconds
        metrics["data_wait_fraction"] = self._waited / seconds
        self._reporter.train(step, metrics)
        self._values.clear()
        self._waited, self._record_began = 0.0, until

    def _not_finite(self, step: int, name: str, value: float) -> RunError:
        self._checkpoints.wait()
        latest = self._checkpoints.latest_step()
        kept = (
            "no checkpoint had been saved"
            if latest is None
            else f"step {latest} is the last good checkpoint"
        )
        what = name.replace("_", " ")
        return RunError(f"the {what} of step {step} is {value}, which must be finite; {kept}")
