"""From a resolved config to the objects of a run; configs stop here."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from convnext_jax import sharding, tree
from convnext_jax.checkpointing.manager import absolute, abstract_like, restore
from convnext_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, Steps
from convnext_jax.data.erasing import RandomErasing
from convnext_jax.data.mixup import Mixup
from convnext_jax.data.pipeline import Batches, eval_batches, train_batches
from convnext_jax.data.sources import Dataset, open_source
from convnext_jax.data.transforms import WARP_FROM_SIZE, EvalTransform, TrainTransform
from convnext_jax.errors import InputError
from convnext_jax.evaluation.evaluator import Evaluator
from convnext_jax.inference.load import load
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec, params_of
from convnext_jax.models.variants import Preprocessing
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.schedule import warmup_cosine
from convnext_jax.training.loop import Run
from convnext_jax.training.state import TrainState, initial_state
from convnext_jax.training.step import make_train_step


def build_run(config: Config, began: float) -> Run:
    """Builds all that `training.loop.train` needs; opens the data, but computes nothing yet.

    Args:
      config: of the run.
      began: when the program did, by `time.perf_counter`.

    Raises:
      InputError: the config does not fit the dataset, the model or the devices.
    """
    mesh = sharding.create_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    accumulation_steps = accumulation(config.data, mesh.size)
    source = open_source(config.data.name, config.data.train_split, config.data.dir)
    held_out = open_source(config.data.name, config.data.eval_split, config.data.dir)
    steps = config.steps(len(source))
    model = describe_model(config, source)
    learning_rate = warmup_cosine(
        config.optim.lr,
        total_steps=steps.total,
        warmup_steps=steps.warmup,
        minimum=config.optim.min_lr,
    )
    weight_decay = config.optim.weight_decay
    if config.optim.weight_decay_end is not None:
        weight_decay = warmup_cosine(
            weight_decay, total_steps=steps.total, minimum=config.optim.weight_decay_end
        )
    optimizer = create_optimizer(
        learning_rate,
        weight_decay=weight_decay,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        clip_norm=config.optim.clip_norm or None,
        layer_decay=config.optim.layer_decay,
        depths=model.spec.depths,
    )
    with_ema = config.optim.ema_decay > 0

    def state_from(params: Any) -> TrainState:
        return initial_state(params, optimizer, with_ema=with_ema)

    abstract_state = jax.eval_shape(state_from, model.spec.abstract_params())
    state_shardings = sharding.parameter_shardings(abstract_state, mesh)

    def initialize() -> TrainState:
        params = initial_params(config, model.spec, state_shardings.params)
        return jax.jit(state_from, out_shardings=state_shardings, donate_argnums=0)(params)

    train_step = make_train_step(
        model.spec.function(),
        optimizer,
        learning_rate,
        num_classes=source.num_classes,
        mean=model.preprocessing.mean,
        std=model.preprocessing.std,
        seed=config.seed,
        label_smoothing=config.optim.label_smoothing,
        ema_decay=config.optim.ema_decay if with_ema else None,
        accumulation_steps=accumulation_steps,
        erasing=build_erasing(config.augment),
        mixup=build_mixup(config.augment, config.data.global_batch // accumulation_steps),
        batch_hashes=config.log_batch_hashes,
    )
    transform = TrainTransform(
        model.preprocessing.input_size,
        crop=config.data.crop,
        flip=config.data.flip,
        auto_augment=config.augment.auto_augment,
        color_jitter=config.augment.color_jitter,
    )

    def batches(start_step: int) -> Batches:
        return train_batches(
            source,
            transform,
            global_batch=config.data.global_batch,
            seed=config.seed,
            start_step=start_step,
            num_steps=steps.total,
            rows=sharding.rows_of_this_process(mesh, config.data.global_batch),
            skip_bad=config.data.on_error == "skip",
            max_skipped=config.data.max_skipped,
            workers=_workers(config.data),
            threads=config.data.threads,
        )

    return Run(
        mesh=mesh,
        abstract_state=abstract_state,
        state_shardings=state_shardings,
        initialize=initialize,
        train_step=jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
            out_shardings=(state_shardings, sharding.replicated(mesh)),
        ),
        evaluator=build_evaluator(model, held_out, config.data, mesh),
        batches=batches,
        stop_at_damage=config.checkpoint.on_damage == "stop",
        hang_seconds=config.hang_seconds,
        batch_hashes=config.log_batch_hashes,
        began=began,
        description=model.to_json() | {"config": dataclasses.asdict(config)},
        plan=describe_plan(config, mesh, steps, len(source), len(held_out)),
        global_batch=config.data.global_batch,
        steps_per_epoch=steps.per_epoch,
        total_steps=steps.total,
        evaluate_every=steps.evaluate_every,
        save_every=config.checkpoint.every_steps,
        keep_last=config.checkpoint.keep_last,
        log_every=config.log_every_steps,
        profile_steps=config.profile_steps,
        tensorboard=config.tensorboard,
    )


def build_erasing(config: AugmentConfig) -> RandomErasing | None:
    """Random erasing as the config has it, or None where it is off."""
    erasing = RandomErasing(
        probability=config.erasing, mode=config.erasing_mode, count=config.erasing_count
    )
    return erasing if erasing.probability > 0 else None


def build_mixup(config: AugmentConfig, examples: int) -> Mixup | None:
    """Mixup and CutMix as the config has them, or None where they are off.

    Raises:
      InputError: `examples`, those of a micro-batch, do not make whole groups.
    """
    mixup = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        probability=config.mix_probability,
        switch_probability=config.mix_switch,
        group=config.mix_group,
    )
    if not mixup.enabled:
        return None
    mixup.groups(examples)
    return mixup


def initial_params(config: Config, spec: ModelSpec, shardings: Any) -> Any:
    """The parameters that a run starts with: those of `init_from`, or random ones.

    Args:
      config: names the weights to start from. Their head is left out, for a random one, where they
        are for another number of classes or the config says so.
      spec: the model.
      shardings: where the parameters go; a tree like them.

    Raises:
      InputError: there are no such weights, or they are another model's.
    """
    key = jax.random.key(config.seed)
    if config.init_from is None:
        draw = jax.jit(lambda key: params_of(spec.create(nnx.Rngs(key))), out_shardings=shardings)
        return draw(key)
    try:
        found = load(
            config.init_from,
            spec.num_classes,
            ema=config.init_ema,
            head=config.init_head,
            rngs=nnx.Rngs(key),
            **spec.overrides,
        )
    except InputError as error:
        raise InputError(f"`init_from` (={config.init_from}) cannot be used: {error}") from error
    if found.spec.name != spec.name:
        raise InputError(
            f"`init_from` (={config.init_from}) must hold weights of {spec.name}, and has those of"
            f" {found.spec.name}"
        )
    params = params_of(found.model)
    difference = tree.first_difference(
        tree.flatten_with_names(params), tree.flatten_with_names(spec.abstract_params())
    )
    if difference is not None:
        raise InputError(f"`init_from` (={config.init_from}) does not fit the model: {difference}")
    return jax.device_put(params, shardings)


def model_spec(config: ModelConfig, num_classes: int) -> ModelSpec:
    """The model that a config describes."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    return ModelSpec(values.pop("name"), num_classes, values)


def describe_model(config: Config, source: Dataset) -> ModelDescription:
    """The model of a run, whose images are evaluated as the reference does at their size."""
    variant = get_variant(config.model.name)
    size = config.data.image_size or variant.input_size
    warp = size >= WARP_FROM_SIZE
    preprocessing = Preprocessing(
        input_size=size,
        crop_fraction=1.0 if warp else config.data.eval_crop or variant.crop_fraction,
        crop_mode="squash" if warp else "center",
        interpolation="bicubic",
        mean=variant.mean,
        std=variant.std,
    )
    spec = model_spec(config.model, source.num_classes)
    return ModelDescription(spec, preprocessing, source.class_names)


def build_evaluator(
    model: ModelDescription, source: Dataset, data: DataConfig, mesh: Mesh, confusion: bool = False
) -> Evaluator:
    """An evaluator of a model on `source`, whose images it prepares as the model wants them.

    With `confusion` it also counts which class was taken for which.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    batch = data.eval_batch
    if batch is None:
        batch = data.global_batch // accumulation(data, mesh.size)
    elif batch % mesh.size:
        raise InputError(
            f"`data.eval_batch` (={batch}) must be divisible by the number of devices"
            f" (={mesh.size})"
        )
    feeding = model.preprocessing
    transform = EvalTransform(
        feeding.input_size, feeding.crop_fraction, feeding.crop_mode, feeding.interpolation
    )
    return Evaluator(
        model.spec.function(),
        functools.partial(
            eval_batches,
            source,
            transform,
            global_batch=batch,
            rows=sharding.rows_of_this_process(mesh, batch),
            workers=_workers(data),
            threads=data.threads,
        ),
        num_examples=len(source),
        mesh=mesh,
        mean=feeding.mean,
        std=feeding.std,
        confusion=confusion,
    )


def _workers(config: DataConfig) -> int:
    return (os.cpu_count() or 1) if config.workers == -1 else config.workers


def accumulation(config: DataConfig, devices: int) -> int:
    """How many micro-batches one step takes: the fewest that respect `data.per_device_batch`.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    if config.global_batch % devices:
        raise InputError(
            f"`data.global_batch` (={config.global_batch}) must be divisible by the number of"
            f" devices (={devices})"
        )
    per_device = config.global_batch // devices
    most = per_device if config.per_device_batch is None else config.per_device_batch
    return next(
        n for n in range(1, per_device + 1) if per_device % n == 0 and per_device // n <= most
    )


def restore_params(spec: ModelSpec, place: tuple[epath.Path, int], item: str, mesh: Mesh) -> Any:
    """Reads one set of a checkpoint's parameters.

    Args:
      spec: of the model.
      place: directory of checkpoints and step, from `find_step`.
      item: `params` or `ema`.
      mesh: where they go.

    Raises:
      InputError: the checkpoint does not have them.
    """
    shapes = spec.abstract_params()
    abstract = abstract_like(shapes, sharding.parameter_shardings(shapes, mesh))
    return restore(*place, {item: abstract})[item]


def checkpoint_dir(config: Config, workdir: Path) -> epath.Path:
    """Where a run's checkpoints lie, absolute; `workdir` is absolute too."""
    chosen = config.checkpoint.dir
    return epath.Path(workdir / "checkpoints") if chosen is None else absolute(chosen)


def prepare_workdir(workdir: str) -> Path:
    """Creates the directory of a run, if need be, and returns its absolute path.

    Raises:
      InputError: it cannot be created or written, or lies in a bucket.
    """
    if "://" in workdir:
        raise InputError(
            f"`--workdir` (={workdir}) must be a directory on a disk; checkpoints go to a bucket"
            f" with `--config.checkpoint.dir={workdir}`"
        )
    path = Path(workdir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{jax.process_index()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"`--workdir` (={workdir}) must be a directory that can be written: {error}"
        ) from error
    return path


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
