"""From a resolved config to the objects of a run; configs stop here."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from convnext_jax import processes, sharding, tree
from convnext_jax.checkpointing.reading import absolute
from convnext_jax.config import Config, DataConfig, Steps
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.data.pipeline import Batches, Passes, train_batches
from convnext_jax.data.sources import Dataset, check_same_classes, require_one_label
from convnext_jax.errors import InputError, Lost
from convnext_jax.models import initial
from convnext_jax.models.registry import backbone_name, same_network
from convnext_jax.models.spec import ModelSpec, batch_stats_of, params_of
from convnext_jax.report import looks
from convnext_jax.retry import is_passing, retrying
from convnext_jax.starting import find_start
from convnext_jax.step_builder import accumulation, build_step
from convnext_jax.training.evaluator import Evaluator, Program
from convnext_jax.training.loop import Run
from convnext_jax.training.reporting import flat
from convnext_jax.training.state import TrainState
from convnext_jax.training.step import metric_names
from convnext_jax.training.stopwatch import Stopwatch
from convnext_jax.training.task import Evaluation
from convnext_jax.weights.find import Weights, placed
from convnext_jax.weights.load import load
from convnext_jax.wings import wing_of


def build_run(config: Config, stopwatch: Stopwatch, directory: epath.Path | None = None) -> Run:
    """Builds all that `training.loop.train` needs; opens the data, but computes nothing yet.

    Args:
      config: of the run.
      stopwatch: of the program's start.
      directory: of its checkpoints; None: it has none that it could go on from.

    Raises:
      InputError: the config does not fit the dataset, the model, the devices, or the weights that
        the run goes on from or starts with.
    """
    mesh = sharding.create_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.slices)
    stopwatch.lap("reaching the devices")
    accumulation(config.data, mesh.size)  # fails before the data is opened
    wing = wing_of(config.model.name)
    source = wing.open(config, config.data.train_split, training=True)
    held_out = wing.open(config, config.data.eval_split)
    check_same_classes(source, held_out)
    require_one_label(source)
    require_same_everywhere(config, [source, held_out])
    allow_open_files([source, held_out], workers_of(config.data))
    stopwatch.lap("opening the data")
    start = find_start(config, directory)
    source, remarks = start.match(source, config.init_head)
    held_out, _ = start.match(held_out, config.init_head)
    step = build_step(
        config, mesh, source.num_classes, len(source), source.class_names, start.feeding
    )
    task, steps = step.task, step.steps
    remarks += start.remarks(config, steps, len(source))
    if step.frozen:
        random = ", which are random: there is no `init_from`" if start.model is None else ""
        remarks.append(step.frozen + random)
    weights = [start.weights]

    def initialize() -> TrainState:
        # Taken out, as they may be read into this process's memory, which a run has better use for.
        found = initial_variables(config, task.model.spec, mesh, weights.pop())
        state_from = jax.jit(
            step.initial_state, out_shardings=step.state_shardings, donate_argnums=0
        )
        return state_from(*found)

    evaluation = wing.evaluation(task.model, held_out)
    evaluator = build_evaluator(evaluation, held_out, config.data, mesh, check=True)

    def page(path: Path, params: Any, batch_stats: Any) -> None:
        assert wing.page is not None
        wing.page(path, task.model, params, batch_stats, held_out)

    def look(params: Any, batch_stats: Any) -> list[str]:
        # Read to this process's devices: of several processes none has all of them.
        arrays = params, batch_stats
        return looks.look(task.model, lambda: arrays, held_out, config.report_examples)

    def batches(start_step: int) -> Batches:
        return train_batches(
            source,
            task.examples,
            global_batch=config.data.global_batch,
            seed=config.seed,
            start_step=start_step,
            num_steps=steps.total,
            rows=sharding.rows_of_this_process(mesh, config.data.global_batch),
            order=None if task.order is None else task.order(source),
            skip_bad=config.data.on_error == "skip",
            max_skipped=config.data.max_skipped,
            workers=workers_of(config.data),
            threads=config.data.threads,
            beside=evaluator.start,
        )

    return Run(
        mesh=mesh,
        abstract_state=step.abstract_state,
        state_shardings=step.state_shardings,
        initialize=initialize,
        train_step=step.function,
        evaluator=evaluator,
        batches=batches,
        stop_at_damage=config.checkpoint.on_damage == "stop",
        hang_seconds=config.hang_seconds,
        metrics=metric_names(task.scalars, config.log_batch_hashes),
        metric=evaluation.metric,
        stopwatch=stopwatch,
        description=task.model.to_json()
        | {"config": dataclasses.asdict(config), "metric": evaluation.metric.name},
        plan="\n".join(
            [
                describe_plan(config, mesh, steps, len(source), len(held_out)),
                *source.notes,
                *held_out.notes,
                *task.remarks,
                *remarks,
            ]
        ),
        global_batch=config.data.global_batch,
        steps_per_epoch=steps.per_epoch,
        total_steps=steps.total,
        evaluate_every=steps.evaluate_every,
        save_every=config.checkpoint.every_steps,
        keep_last=config.checkpoint.keep_last,
        log_every=config.log_every_steps,
        profile_steps=config.profile_steps,
        tensorboard=config.tensorboard,
        log_parameters=config.log_parameters,
        page=page if wing.page is not None else None,
        look=look if config.report_examples else None,
        pictures=step.pictures if config.tensorboard else None,
    )


# What may differ between the processes of one run: their machines do.
_OF_ONE_PROCESS = frozenset(
    "data.dir data.workers data.threads init_from checkpoint.dir hang_seconds"
    " profile_steps compilation_cache".split()
)


def require_same_everywhere(config: Config, sources: Sequence[Dataset]) -> None:
    """Compares what the processes of a run were given; a part of a copied dataset may be missing.

    Args:
      config: of this process.
      sources: the splits that it opened.

    Raises:
      InputError: a process has other keys, or other numbers of examples, than process 0.
    """
    found = {
        key: str(value)
        for key, value in flat(dataclasses.asdict(config)).items()
        if key not in _OF_ONE_PROCESS
    }
    found |= {f"the number of examples of {source}": str(len(source)) for source in sources}
    first, *others = map(json.loads, processes.texts_from_all(json.dumps(found)))
    for index, other in enumerate(others, start=1):
        for what in first:
            if first[what] != other.get(what):
                raise InputError(
                    f"{what} must be the same on all processes: it is {first[what]} on process 0"
                    f" and {other.get(what)} on process {index}"
                )


def initial_variables(
    config: Config, spec: ModelSpec, mesh: Mesh, weights: Weights | None
) -> tuple[Any, Any]:
    """The parameters that a run starts with: those of `init_from`, or random ones.

    Args:
      config: of the run. The head of the weights is left out, for a random one, where they are for
        another number of classes or the config says so. Of a classifier's weights a model that has
        it as its backbone takes those of the stages.
      spec: the model.
      mesh: where the parameters go, each straight to its place.
      weights: what `init_from` names; None: nothing.

    Returns:
      The parameters; and the batch statistics, None for those before any batch.

    Raises:
      InputError: the weights are another model's.
    """
    key = jax.random.key(config.seed)
    if weights is None:
        shardings = sharding.parameter_shardings(spec.abstract_params(), mesh)
        drawings, structure = jax.tree.flatten(params_of(spec.initial(nnx.Rngs(key))))
        places = [functools.partial(placed, place=place) for place in jax.tree.leaves(shardings)]
        return jax.tree.unflatten(structure, initial.placed(drawings, places)), None
    name, found = f"`init_from` (={config.init_from})", weights.description.spec.name
    if not same_network(found, spec.name) and found != backbone_name(spec.name):
        raise InputError(f"{name} must hold weights of {spec.name}, and has those of {found}")
    try:
        loaded = load(
            weights,
            spec.num_classes,
            head=config.init_head,
            rngs=nnx.Rngs(key),
            mesh=mesh,
            model=spec.name,
            **spec.overrides,
        )
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error
    params = params_of(loaded.model)
    difference = tree.first_difference(
        tree.flatten_with_names(params), tree.flatten_with_names(spec.abstract_params())
    )
    if difference is not None:
        raise InputError(f"{name} does not fit the model: {difference}")
    return params, batch_stats_of(loaded.model)


def build_evaluator(
    evaluation: Evaluation,
    source: Dataset,
    data: DataConfig,
    mesh: Mesh,
    *,
    check: bool = False,
    program: Program | None = None,
    option: str = "data.on_error",
    batch_option: str = "data.eval_batch",
) -> Evaluator:
    """An evaluator of a task's model on `source`.

    Args:
      evaluation: the task's.
      source: the examples.
      data: says how they are read.
      mesh: the devices.
      check: look for images that cannot be read as soon as it is started, and not only in a pass.
      program: as `Evaluator` takes it.
      option: what a message calls `data.on_error`.
      batch_option: what it calls `data.eval_batch`.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    batch = data.eval_batch
    if batch is None:
        batch = data.global_batch
        if batch % mesh.size == 0:
            batch //= accumulation(data, mesh.size)
    if batch % mesh.size:
        raise InputError(
            f"`{batch_option}` (={batch}) must be divisible by the number of devices (={mesh.size})"
        )
    return Evaluator(
        evaluation,
        Passes(
            source,
            evaluation.examples,
            global_batch=batch,
            rows=sharding.rows_of_this_process(mesh, batch),
            order=None if evaluation.order is None else evaluation.order(source, batch),
            check=check and data.on_error == "stop",
            skip_bad=data.on_error == "skip",
            max_skipped=data.max_skipped,
            option=option,
            workers=workers_of(data),
            threads=data.threads,
        ),
        mesh=mesh,
        program=program,
    )


def workers_of(config: DataConfig) -> int:
    """How many decoding workers a process of a run has for each split."""
    return processes.usable_cores() if config.workers == -1 else config.workers


def checkpoint_dir(config: Config, workdir: Path) -> epath.Path:
    """Where a run's checkpoints lie, absolute; `workdir` is absolute too.

    Raises:
      InputError: they would lie in a store that marks no checkpoint as complete.
    """
    chosen = config.checkpoint.dir
    if chosen is not None and "://" in chosen and not chosen.startswith("gs://"):
        raise InputError(
            f"`checkpoint.dir` (={chosen}) must be on a disk or in a bucket (gs://...)"
        )
    return epath.Path(workdir / "checkpoints") if chosen is None else absolute(chosen)


def workdir_path(workdir: str) -> Path:
    """The absolute path of a run's directory, which need not be there; InputError for a bucket."""
    if "://" in workdir:
        raise InputError(
            f"`--workdir` (={workdir}) must be a directory on a disk; checkpoints go to a bucket"
            f" with `--config.checkpoint.dir={workdir}`"
        )
    return Path(workdir).expanduser().absolute()


def prepare_workdir(workdir: str) -> Path:
    """Creates the directory of a run, if need be, and returns its absolute path.

    Raises:
      InputError: it cannot be created or written, or lies in a bucket.
    """
    path = workdir_path(workdir)
    require_writable("--workdir", epath.Path(path))
    return path


def require_writable(name: str, path: epath.Path) -> None:
    """Creates a directory, if need be, and a file in it, which it takes away again.

    Args:
      name: of the flag or key that chose it.
      path: absolute.

    Raises:
      InputError: that failed.
      Lost: the file system does not answer.
    """
    probe = path / f".write-test-{jax.process_index()}"

    def write() -> None:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()

    try:
        retrying(write)
    except Exception as error:  # buckets have errors of their own
        if is_passing(error):
            raise Lost(f"`{name}` (={path}) does not answer: {error}") from error
        raise InputError(
            f"`{name}` (={path}) must be a directory that can be written: {error}"
        ) from error


def describe_plan(config: Config, mesh: Mesh, steps: Steps, training: int, held_out: int) -> str:
    """What a run will do, in the numbers that its cost and its recipe depend on.

    Args:
      config: of the run.
      mesh: its devices.
      steps: its lengths.
      training: number of training examples.
      held_out: number of examples of an evaluation.
    """
    batch = config.data.global_batch
    parts = accumulation(config.data, mesh.size)
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind} ({shape}),"
        f" {jax.process_count()} process(es)\n"
        f"batch: {batch} = {mesh.size} devices x {batch // mesh.size // parts} images x {parts}"
        f" micro-batch(es)\n"
        f"steps: {steps.total} ({steps.warmup} warm-up), {steps.per_epoch} an epoch;"
        f" {training} training images, {steps.total * batch} seen; {held_out} evaluated every"
        f" {steps.evaluate_every} steps"
    )


def facts(config: Config, run: Run) -> dict[str, Any]:
    """What a summary says of a run beside its results."""
    device = run.mesh.devices.flat[0]
    parameters = jax.tree.leaves(run.abstract_state.params)
    return {
        "model": config.model.name,
        "parameters": sum(leaf.size for leaf in parameters),
        "dtype": config.model.dtype,
        "dataset": config.data.name,
        "train_split": config.data.train_split,
        "eval_split": config.data.eval_split,
        "global_batch": config.data.global_batch,
        "total_steps": run.total_steps,
        "devices": f"{run.mesh.size} x {device.device_kind}",
        "jax": jax.__version__,
    }
