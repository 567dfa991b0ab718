"""From a resolved config to the compiled training step; what data it is fed is not known here.

Training and planning build the same step here: the one for devices that are there, the other for
devices that are only described.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.config import AugmentConfig, Config, DataConfig, ModelConfig, Steps
from convnext_jax.data.erasing import RandomErasing
from convnext_jax.data.mixup import Mixup
from convnext_jax.data.transforms import WARP_FROM_SIZE
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription, ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.schedule import warmup_cosine
from convnext_jax.training.state import TrainState, initial_state
from convnext_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """The training step of a run on a mesh, and what belongs to it.

    Attributes:
      model: what is trained, and how its images are fed to it.
      steps: lengths of the run.
      accumulation_steps: micro-batches of a step.
      initial_state: parameters -> the state before the first step.
      abstract_state: shapes and types of the state.
      state_shardings: where its arrays lie; same structure.
      function: jitted and donating (state, batch) -> (state, metrics), see `make_train_step`.
    """

    model: ModelDescription
    steps: Steps
    accumulation_steps: int
    initial_state: Callable[[Any], TrainState]
    abstract_state: TrainState
    state_shardings: TrainState
    function: Any


def build_step(
    config: Config,
    mesh: Mesh,
    num_classes: int,
    num_examples: int,
    class_names: tuple[str, ...] | None = None,
    feeding: Preprocessing | None = None,
) -> TrainingStep:
    """Builds the training step; nothing is compiled or computed yet.

    Args:
      config: of the run.
      mesh: its devices, or descriptions of devices.
      num_classes: labels lie in [0, num_classes).
      num_examples: of the training split, by which epochs become steps.
      class_names: name of each class, by label; None: unknown.
      feeding: of the weights that the run starts from, whose mean and standard deviation it keeps;
        None: those of the model's variant.

    Raises:
      InputError: the config does not fit the dataset, the model or the devices.
    """
    accumulation_steps = accumulation(config.data, mesh.size)
    steps = config.steps(num_examples)
    model = describe_model(config, num_classes, class_names, feeding)
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
    train_step = make_train_step(
        sharding.gathering(
            model.spec.function(), mesh, model.spec.kernel_dtypes(), config.optim.gradient_sum
        ),
        optimizer,
        learning_rate,
        num_classes=num_classes,
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
    return TrainingStep(
        model=model,
        steps=steps,
        accumulation_steps=accumulation_steps,
        initial_state=state_from,
        abstract_state=abstract_state,
        state_shardings=state_shardings,
        function=jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
            out_shardings=(state_shardings, sharding.replicated(mesh)),
        ),
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


def model_spec(config: ModelConfig, num_classes: int) -> ModelSpec:
    """The model that a config describes."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    return ModelSpec(values.pop("name"), num_classes, values)


def describe_model(
    config: Config,
    num_classes: int,
    class_names: tuple[str, ...] | None,
    feeding: Preprocessing | None = None,
) -> ModelDescription:
    """The model of a run, whose images are evaluated as the reference does at their size."""
    variant = get_variant(config.model.name)
    size = config.data.image_size or variant.input_size
    warp = size >= WARP_FROM_SIZE
    preprocessing = Preprocessing(
        input_size=size,
        crop_fraction=1.0 if warp else config.data.eval_crop or variant.crop_fraction,
        crop_mode="squash" if warp else "center",
        interpolation="bicubic",
        mean=(feeding or variant).mean,
        std=(feeding or variant).std,
        exif=config.data.exif,
    )
    return ModelDescription(model_spec(config.model, num_classes), preprocessing, class_names)


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
