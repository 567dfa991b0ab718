"""The configuration of a run: its keys, their defaults, and the checks on them.

A config file returns `default_config()` with its own values set; the command line overrides single
keys; `resolve` turns the result into frozen dataclasses. The dataclasses below are the list of all
keys.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from convnext_jax.config_ranges import check_ranges
from convnext_jax.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model; None means the variant's own value."""

    name: str = "convnext_tiny"  # one of `convnext_jax.list_models()`
    dtype: str = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    drop_path: float = 0.0  # probability of dropping the last block; the first is never dropped
    depths: tuple[int, ...] | None = None  # blocks in each stage
    dims: tuple[int, ...] | None = None  # channels of each stage
    kernel_size: int | None = None  # side of the depthwise filters, odd
    layer_scale_init: float | None = None  # 0: no layer scale
    norm_group: int | None = None  # examples that share BatchNorm's statistics, on the roadmap
    head_init_scale: float = 1.0  # multiplies the initial kernel and bias of the head
    remat: bool = False  # recompute each block's activations in the backward pass

    def overrides(self) -> dict[str, Any]:
        """What `create_model` is given beside the name and the number of classes."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if key != "name"}
        return {key: value for key, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The dataset, its transforms and the batch."""

    name: str = "imagenet2012"  # as TFDS names it: name, name/config, name:version
    dir: str | None = None  # TFDS's data directory; None: TFDS's own default
    train_split: str = "train"  # as TFDS writes it: `train[:90%]` is a part
    eval_split: str = "validation"  # likewise
    annotations: str | None = None  # of a folder to detect in: COCO's JSON on training's images
    eval_annotations: str | None = None  # and on evaluation's
    global_batch: int = 4096  # examples of one optimiser step, over all devices
    per_device_batch: int | None = None  # at most so many at once; the step accumulates the rest
    eval_batch: int | None = None  # over all devices; None: as many as the step takes at once
    image_size: int | None = None  # pixels; None: the variant's
    crop: str = "random_resized"  # or padded: 4 pixels of black around, for small images
    crop_scale: float = 0.08  # least area of the random resized crop; the largest is all of it
    exif: bool = False  # turn images as their EXIF orientation says, which the reference does not
    flip: float = 0.5  # probability of a horizontal flip
    eval_crop: float | None = None  # centre share of the resized image's side; None: the variant's
    workers: int = 0  # decoding processes; 0: threads of this process; -1: one a usable core
    threads: int = 8  # decoding threads in each process
    on_error: str = "stop"  # at a training image that cannot be read; or skip: take another
    max_skipped: int = 100  # most different images that a process may skip


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation beyond crop and flip; everything is off by default."""

    auto_augment: str = ""  # RandAugment's policy, such as rand-m9-mstd0.5-inc1
    color_jitter: float = 0.0  # strength; not together with auto_augment
    erasing: float = 0.0  # probability of random erasing
    erasing_mode: str = "pixel"  # filled with noise per pixel, or rand (a colour), const (zero)
    erasing_count: int = 1  # boxes in an image that is erased
    mixup: float = 0.0  # alpha of its Beta distribution; 0: no mixup
    cutmix: float = 0.0  # likewise
    mix_probability: float = 1.0  # of mixing a group of examples at all
    mix_switch: float = 0.5  # probability of cutmix, where there are both
    mix_group: int = 128  # consecutive examples that share a draw and mix with each other


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """What only models that segment have."""

    scale_min: float = 0.5  # images are resized by a factor from here
    scale_max: float = 2.0  # to here, before a crop of `data.image_size` is cut out
    photometric: bool = True  # distort brightness, contrast, saturation and hue
    dropout: float = 0.1  # probability of dropping a channel before the classifiers
    auxiliary_weight: float = 0.4  # of the auxiliary head's loss
    decoder_channels: int | None = None  # width of the decoder; None: 512
    auxiliary_channels: int | None = None  # of the auxiliary head; None: 256
    first_label: int = 0  # value of the first class in annotations; ours say it themselves
    ignored: int | None = None  # value that is of no class; None: none, in a folder 255


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """What only models that detect have; None means the model's own value."""

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))  # one at random; evaluation: largest
    longest_side: int = 1333  # of an image at most; the canvas has the next multiple of 32
    crops: bool = True  # half of the images are cropped first, out of another size
    crop_short_sides: tuple[int, ...] = (400, 500, 600)  # which is one of these
    crop_min: int = 384  # least height and width of a crop
    crop_max: int = 600  # and the largest
    max_objects: int = 100  # of an image that training knows
    keep_empty: bool = False  # train on images without objects, too; the reference does not
    fpn_channels: int | None = None  # width of the pyramid and of the heads' convolutions
    head_features: int | None = None  # width of the hidden layers of box heads
    rpn_before: int | None = None  # anchors of a level that become proposals in training, at most
    rpn_after: int | None = None  # proposals of an image in training
    rpn_before_eval: int | None = None  # anchors of a level, where nothing is trained
    rpn_after_eval: int | None = None  # proposals, where nothing is trained
    roi_samples: int | None = None  # proposals of an image that the heads are trained on
    detections: int | None = None  # of an image at most
    score_threshold: float | None = None  # probability that a detection exceeds


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, the loss and the moving average."""

    lr: float = 4e-3  # the highest learning rate, after warm-up, for the whole batch
    min_lr: float = 1e-6  # the learning rate that the schedule ends at
    warmup_epochs: float = 20.0  # of linear warm-up from 0
    warmup_steps: int | None = None  # takes the place of `warmup_epochs`
    weight_decay: float = 0.05  # of kernels; norms, biases and layer scale have none
    schedule: str = "cosine"  # after warm-up; or poly: linearly to min_lr, warm-up multiplied on
    milestones: tuple[int, ...] = ()  # or step: a tenth from each of these epochs on
    weight_decay_end: float | None = None  # follows a cosine to this; None: stays as it is
    layer_decay: float = 1.0  # of the learning rate, from the head to the stem; 1: none
    layer_decay_by: str = "blocks"  # groups of blocks, or stages as in the paper's segmentation
    b1: float = 0.9  # of the mean of gradients
    b2: float = 0.999  # of the mean of their squares
    eps: float = 1e-8  # added to the root of the latter
    clip_norm: float = 0.0  # global norm; 0: no clipping
    gradient_sum: str = "float32"  # over devices; or model.dtype, bfloat16: half the bytes
    label_smoothing: float = 0.1  # share of the target that all classes have alike
    ema_decay: float = 0.9999  # 0: no moving average
    freeze: str = ""  # what keeps its values: backbone, or beginnings of names, stages/0,stages/1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 for the rest."""

    data: int = -1  # over all slices
    fsdp: int = 1  # within a slice
    slices: int = -1  # joined by the data-centre network; -1: as TPUs say; 1: no matter


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, beside after every evaluation, and what to keep, beside the best."""

    dir: str | None = None  # where checkpoints go, such as gs://...; None: into the workdir
    every_steps: int | None = None  # save also so often; None: no more than evaluations do
    keep_last: int = 2  # newest checkpoints to keep
    on_damage: str = "fall_back"  # to the newest one that is whole; or stop


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    seed: int = 0  # of everything random: two runs of one seed are the same run
    # Weights to start from: what `load_pretrained` takes. The workdir's own checkpoint comes first.
    init_from: str | None = None
    init_ema: bool | None = None  # their moving average; None: if there is one
    init_head: bool = True  # their head, if its number of classes fits; False: a new one
    num_epochs: float = 300.0  # of the schedule, and of the run unless `num_steps` is given
    num_steps: int | None = None  # ends the run early, or late, whatever `num_epochs`; None: epochs
    eval_every_epochs: float = 1.0  # and at the end
    eval_every_steps: int | None = None  # takes the place of `eval_every_epochs`
    log_every_steps: int = 50  # that one record of metrics.jsonl covers
    log_parameters: bool = False  # print each parameter at the start, instead of their number
    log_batch_hashes: bool = False  # record which images each step saw, to compare runs by
    hang_seconds: float = 1800.0  # a step that takes longer is reported, with all stacks; 0: never
    compilation_cache: bool = True  # keep compiled programs in the user's cache directory
    report_examples: int = 1000  # looked at for report.html at the end; 0: there is no report
    profile_steps: int = 0  # steps to profile, shortly after the start
    tensorboard: bool = True  # also write TensorBoard events
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    detection: DetectionConfig = DetectionConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    def steps(self, num_examples: int, per_epoch: int | None = None) -> "Steps":
        """Converts epochs to optimiser steps.

        Args:
          num_examples: of the training split. The last `num_examples % global_batch` of an epoch's
            order are left out, as in the reference.
          per_epoch: steps of an epoch, where the task has another order of examples.

        Raises:
          InputError: the batch is larger than the split, or the warm-up longer than the run.
        """
        if per_epoch is None:
            per_epoch = num_examples // self.data.global_batch
        if per_epoch == 0:
            raise InputError(
                f"`data.global_batch` (={self.data.global_batch}) must be at most the number of"
                f" training examples (={num_examples})"
            )
        total = self.num_steps
        if total is None:
            total = max(round(self.num_epochs * per_epoch), 1)
        steps = self.optim.warmup_steps
        warmup = round(self.optim.warmup_epochs * per_epoch) if steps is None else steps
        if self.num_steps is not None:
            # A run cut short to try something out still goes through its schedule.
            warmup = min(warmup, total)
        if warmup > total and steps is not None:
            raise InputError(
                f"`optim.warmup_steps` (={steps}) must be at most those of the run (={total})"
            )
        if warmup > total:
            raise InputError(
                f"`optim.warmup_epochs` (={self.optim.warmup_epochs}) must be at most `num_epochs`"
                f" (={self.num_epochs})"
            )
        evaluate_every = self.eval_every_steps or max(round(self.eval_every_epochs * per_epoch), 1)
        return Steps(per_epoch, total, warmup, evaluate_every)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Lengths in optimiser steps."""

    per_epoch: int
    total: int
    warmup: int
    evaluate_every: int


def default_config() -> ConfigDict:
    """All keys with their defaults, locked: setting a key that does not exist is an error."""
    return _to_config_dict(Config())


def _to_config_dict(section: Any) -> ConfigDict:
    hints = typing.get_type_hints(type(section))
    result = ConfigDict()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = _to_config_dict(value)
        elif isinstance(hints[field.name], types.UnionType):
            # A placeholder keeps the type of a key that may be None, for checking later overrides.
            (base,) = (t for t in typing.get_args(hints[field.name]) if t is not type(None))
            placeholder = config_dict.placeholder(typing.get_origin(base) or base)
            if value is not None:
                placeholder.set(value)
            value = placeholder
        result[field.name] = value
    return result.lock()


def resolve(config: ConfigDict) -> Config:
    """Checks a configuration and freezes it.

    Raises:
      InputError: an unknown key (with the closest existing ones), a value of the wrong type, or a
        value out of its range.
    """
    return from_dict(config.to_dict())


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a `Config` from nested dictionaries, such as those that `dataclasses.asdict` gives.

    Raises:
      InputError: as `resolve`.
    """
    config = _build(Config, values, prefix="")
    check_ranges(config)
    return config


def require_unused(
    config: Config, does: str, further: Mapping[str, tuple[Any, Any]] | None = None
) -> None:
    """Raises InputError for a key that is for classification alone, and is set.

    Args:
      config: of a run of another task.
      does: what its model does, a verb.
      further: other such keys: what they have, and what they must.
    """
    data, plain = config.data, DataConfig()
    keys: dict[str, tuple[Any, Any]] = {
        "optim.label_smoothing": (config.optim.label_smoothing, 0.0),
        "data.crop": (data.crop, plain.crop),
        "data.crop_scale": (data.crop_scale, plain.crop_scale),
        "model.head_init_scale": (config.model.head_init_scale, 1.0),
    }
    for field, value in vars(AugmentConfig()).items():
        keys[f"augment.{field}"] = getattr(config.augment, field), value
    for key, (value, must) in (keys | dict(further or {})).items():
        if value != must:
            raise InputError(
                f"`{key}` (={value!r}) must be {must!r}: it is for classification, and"
                f" {config.model.name} {does}"
            )


def unknown_key(key: str) -> InputError:
    """The error for a key that no config has, with the closest that exist."""
    return InputError(f"unknown config key `{key}`{did_you_mean(key, all_keys())}")


def all_keys(section: type = Config, prefix: str = "") -> list[str]:
    """The dotted names of all keys, such as `optim.lr`."""
    keys = []
    for name, hint in typing.get_type_hints(section).items():
        nested = dataclasses.is_dataclass(hint)
        keys += all_keys(hint, f"{prefix}{name}.") if nested else [prefix + name]  # pyright: ignore[reportArgumentType]
    return keys


def _build(section: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(section)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_key(prefix + name)
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, value, f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            arguments[name] = _typed(value, hint, prefix + name)
    return section(**arguments)


def _typed(value: Any, hint: Any, key: str) -> Any:
    union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = [typing.get_origin(t) or t for t in union]
    # An int is a fine float; a bool is an int to Python, but not to a reader of a config; and JSON,
    # in which checkpoints keep their config, has no tuples.
    if float in allowed and type(value) is int:
        value = float(value)
    if tuple in allowed and type(value) is list:
        value = tuple(value)
    whole = type(value) is not tuple or all(type(x) is int for x in value)
    if type(value) not in allowed or not whole:
        spoken: dict[Any, str] = {type(None): "None", tuple: "tuple of int"}
        names = " or ".join(spoken.get(t) or t.__name__ for t in allowed)
        raise InputError(f"`{key}` (={value!r}) must be of type {names}")
    return value
