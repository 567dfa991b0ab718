"""From a resolved config and a task to the training step; what data it is fed is not known here.

Training and planning build the same step here: the one for devices that are there, the other for
devices that are only described.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.config import Config, DataConfig, Steps
from convnext_jax.errors import InputError
from convnext_jax.models.variants import Preprocessing
from convnext_jax.ops.few_images import batch_over
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.param_groups import trained
from convnext_jax.optim.schedule import learning_rate, warmup_cosine
from convnext_jax.training.state import TrainState, initial_state
from convnext_jax.training.step import first_micro_batch, make_train_step
from convnext_jax.training.task import Task
from convnext_jax.wings import wing_of

# Images of a step that are shown.
_PICTURES = 16


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """The training step of a run on a mesh, and what belongs to it.

    Attributes:
      task: what is trained, and for what.
      steps: lengths of the run.
      accumulation_steps: micro-batches of a step.
      initial_state: (parameters, batch statistics or None for the task's) -> the state before the
        first step.
      abstract_state: shapes and types of the state.
      state_shardings: where its arrays lie; same structure.
      frozen: sentence on what keeps its values; empty: nothing does.
      function: jitted and donating (state, batch) -> (state, metrics), see `make_train_step`.
      pictures: (batch, step) -> uint8 [n, H, W, 3], the first of what the model is fed with in a
        step, the same on all processes; None: nothing to look at.
    """

    task: Task
    steps: Steps
    accumulation_steps: int
    initial_state: Callable[..., TrainState]
    abstract_state: TrainState
    state_shardings: TrainState
    frozen: str
    function: Any
    pictures: Callable[[Any, int], jax.Array] | None


def build_step(
    config: Config,
    mesh: Mesh,
    num_classes: int,
    num_examples: int,
    class_names: tuple[str, ...] | None = None,
    feeding: Preprocessing | None = None,
) -> TrainingStep:
    """Builds the training step of the task that the model is for; nothing is compiled or computed.

    Args:
      config: of the run.
      mesh: its devices, or descriptions of devices.
      num_classes: of the dataset.
      num_examples: of the training split, by which epochs become steps.
      class_names: name of each class, by label; None: unknown.
      feeding: of the weights that the run starts from, whose mean and standard deviation it keeps;
        None: those of the model's variant.

    Raises:
      InputError: the config does not fit the dataset, the model or the devices.
    """
    examples = config.data.global_batch // accumulation(config.data, mesh.size)
    make = wing_of(config.model.name).task
    task = make(config, num_classes, examples, class_names, feeding)
    return step_of(task, config, mesh, num_examples)


def step_of(task: Task, config: Config, mesh: Mesh, num_examples: int) -> TrainingStep:
    """The training step of a task; the arguments are those of `build_step`."""
    accumulation_steps = accumulation(config.data, mesh.size)
    of_epoch = None if task.steps_per_epoch is None else task.steps_per_epoch(num_examples)
    steps = config.steps(num_examples, of_epoch)
    spec = task.model.spec
    rate = learning_rate(
        config.optim.schedule,
        config.optim.lr,
        total_steps=steps.total,
        warmup_steps=steps.warmup,
        minimum=config.optim.min_lr,
        milestones=[epoch * steps.per_epoch for epoch in config.optim.milestones],
    )
    weight_decay = config.optim.weight_decay
    if config.optim.weight_decay_end is not None:
        weight_decay = warmup_cosine(
            weight_decay, total_steps=steps.total, minimum=config.optim.weight_decay_end
        )
    moves, frozen = None, ""
    if config.optim.freeze:
        moves = trained(spec.abstract_params(), config.optim.freeze)
        frozen = _describe_frozen(spec.abstract_params(), moves, config.optim.freeze)
    optimizer = create_optimizer(
        rate,
        weight_decay=weight_decay,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        clip_norm=config.optim.clip_norm or None,
        layer_decay=config.optim.layer_decay,
        layer_decay_by=config.optim.layer_decay_by,
        depths=spec.depths,
        trained=moves,
    )
    with_ema = config.optim.ema_decay > 0

    def state_from(params: Any, batch_stats: Any = None) -> TrainState:
        if batch_stats is None:
            batch_stats = jax.tree.map(jnp.asarray, task.batch_stats)
        return initial_state(params, optimizer, with_ema=with_ema, batch_stats=batch_stats)

    abstract_state = jax.eval_shape(state_from, spec.abstract_params())
    state_shardings = sharding.parameter_shardings(abstract_state, mesh)
    train_step = make_train_step(
        sharding.gathering(task.loss, mesh, spec.kernel_dtypes(), config.optim.gradient_sum),
        optimizer,
        rate,
        seed=config.seed,
        ema_decay=config.optim.ema_decay if with_ema else None,
        accumulation_steps=accumulation_steps,
        scalars=task.scalars,
        batch_hashes=config.log_batch_hashes,
        trained=moves,
    )
    return TrainingStep(
        task=task,
        steps=steps,
        accumulation_steps=accumulation_steps,
        initial_state=state_from,
        abstract_state=abstract_state,
        state_shardings=state_shardings,
        frozen=frozen,
        function=jax.jit(
            batch_over(mesh)(train_step),
            donate_argnums=0,
            in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
            out_shardings=(state_shardings, sharding.replicated(mesh)),
        ),
        pictures=_pictures(task, config.seed, accumulation_steps, mesh),
    )


def _pictures(task: Task, seed: int, accumulation_steps: int, mesh: Mesh) -> Any:
    """`TrainingStep.pictures` of a task."""
    draw = task.pictures
    if draw is None:
        return None

    def pictures(batch: Any, step: jax.Array) -> jax.Array:
        micro, key = first_micro_batch(seed, step, batch, accumulation_steps)
        return draw(micro, key)[:_PICTURES]

    return jax.jit(pictures, out_shardings=sharding.replicated(mesh))


def _describe_frozen(params: Any, moves: Any, freeze: str) -> str:
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    left = sum(itertools.compress(sizes, jax.tree.leaves(moves)))
    return (
        f"frozen ({freeze}): {sum(sizes) - left:,} of {sum(sizes):,} parameters keep their values;"
        f" {left:,} are trained"
    )


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
