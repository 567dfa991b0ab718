"""From a resolved config to the objects of a run; configs stop here."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.checkpointing.manager import abstract_like, restore
from convnext_jax.config import Config, DataConfig, ModelConfig
from convnext_jax.data.pipeline import Batches, eval_batches, train_batches
from convnext_jax.data.sources import Source, open_source
from convnext_jax.data.transforms import EvalTransform, TrainTransform
from convnext_jax.errors import InputError
from convnext_jax.evaluation.evaluator import Evaluator
from convnext_jax.models.registry import create_model, get_variant
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.schedule import warmup_cosine
from convnext_jax.training.loop import Run
from convnext_jax.training.state import initial_state
from convnext_jax.training.step import make_train_step


def build_run(config: Config) -> Run:
    """Builds all that `training.loop.train` needs; opens the data, but computes nothing yet.

    Raises:
      InputError: the config does not fit the dataset, the model or the devices.
    """
    mesh = sharding.create_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    accumulation_steps = accumulation(config.data, mesh.size)
    source = open_source(config.data.name, config.data.train_split, config.data.dir)
    held_out = open_source(config.data.name, config.data.eval_split, config.data.dir)
    steps = config.steps(len(source))
    variant = get_variant(config.model.name)
    learning_rate = warmup_cosine(
        config.optim.lr,
        total_steps=steps.total,
        warmup_steps=steps.warmup,
        minimum=config.optim.min_lr,
    )
    optimizer = create_optimizer(
        learning_rate,
        weight_decay=config.optim.weight_decay,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        clip_norm=config.optim.clip_norm or None,
    )
    with_ema = config.optim.ema_decay > 0

    def initialize(key: jax.Array) -> Any:
        model = build_model(config.model, source.num_classes, nnx.Rngs(key))
        return initial_state(model, optimizer, with_ema=with_ema)

    key = jax.random.key(config.seed)
    abstract_state = jax.eval_shape(initialize, key)
    state_shardings = sharding.parameter_shardings(abstract_state, mesh)
    apply = build_apply(config.model, source.num_classes)
    train_step = make_train_step(
        apply,
        optimizer,
        learning_rate,
        num_classes=source.num_classes,
        mean=variant.mean,
        std=variant.std,
        seed=config.seed,
        label_smoothing=config.optim.label_smoothing,
        ema_decay=config.optim.ema_decay if with_ema else None,
        accumulation_steps=accumulation_steps,
    )
    image_size = config.data.image_size or variant.input_size

    def batches(start_step: int) -> Batches:
        return train_batches(
            source,
            TrainTransform(image_size, crop=config.data.crop, flip=config.data.flip),
            global_batch=config.data.global_batch,
            seed=config.seed,
            start_step=start_step,
            num_steps=steps.total,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=_workers(config.data),
            threads=config.data.threads,
        )

    return Run(
        mesh=mesh,
        abstract_state=abstract_state,
        state_shardings=state_shardings,
        initialize=lambda: jax.jit(initialize, out_shardings=state_shardings)(key),
        train_step=jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
            out_shardings=(state_shardings, sharding.replicated(mesh)),
        ),
        evaluator=build_evaluator(config, held_out, mesh),
        batches=batches,
        description=describe(config, source),
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


def build_model(config: ModelConfig, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """Creates the model that a config describes."""
    chosen = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name != "name" and value is not None
    }
    return create_model(config.name, num_classes, rngs, **chosen)


def build_apply(config: ModelConfig, num_classes: int) -> Callable[..., jax.Array]:
    """The model as a pure function (params, images, key=None) -> logits."""
    abstract_model = nnx.eval_shape(lambda: build_model(config, num_classes, nnx.Rngs(0)))
    graph, _ = nnx.split(abstract_model)

    def apply(params: Any, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return nnx.merge(graph, params)(images, key=key)

    return apply


def build_evaluator(config: Config, source: Source, mesh: Mesh) -> Evaluator:
    """An evaluator of `source` with the config's model and evaluation transform.

    Raises:
      InputError: the batch does not divide over the devices.
    """
    variant = get_variant(config.model.name)
    image_size = config.data.image_size or variant.input_size
    crop_fraction = config.data.eval_crop or variant.crop_fraction
    batch = config.data.eval_batch
    if batch is None:
        batch = config.data.global_batch // accumulation(config.data, mesh.size)
    elif batch % mesh.size:
        raise InputError(
            f"`data.eval_batch` (={batch}) must be divisible by the number of devices"
            f" (={mesh.size})"
        )
    return Evaluator(
        build_apply(config.model, source.num_classes),
        functools.partial(
            eval_batches,
            source,
            EvalTransform(image_size, crop_fraction),
            global_batch=batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=_workers(config.data),
            threads=config.data.threads,
        ),
        num_examples=len(source),
        mesh=mesh,
        mean=variant.mean,
        std=variant.std,
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


def restore_params(
    config: Config, num_classes: int, place: tuple[Path, int], item: str, mesh: Mesh
) -> Any:
    """Reads one set of a checkpoint's parameters.

    Args:
      config: describes the model.
      num_classes: of the model.
      place: directory of checkpoints and step, from `find_step`.
      item: `params` or `ema`.
      mesh: where they go.

    Raises:
      InputError: the checkpoint does not have them.
    """
    model = nnx.eval_shape(lambda: build_model(config.model, num_classes, nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    abstract = abstract_like(shapes, sharding.parameter_shardings(shapes, mesh))
    return restore(*place, {item: abstract})[item]


def describe(config: Config, source: Source) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON can hold it."""
    return {
        "num_classes": source.num_classes,
        "class_names": list(source.class_names),
        "config": dataclasses.asdict(config),
    }


def prepare_workdir(workdir: Path) -> Path:
    """Creates the directory of a run, if need be, and returns its absolute path.

    Raises:
      InputError: it cannot be created or written.
    """
    path = workdir.expanduser().absolute()
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
