"""What a run goes on from, or starts from, and whether that fits the run's data and config."""

import contextlib
import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
from etils import epath

from convnext_jax import processes
from convnext_jax.checkpointing.reading import read_description
from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.config import Config, Steps, from_dict
from convnext_jax.constants import PARAMETERS
from convnext_jax.data.relabelled import relabelled
from convnext_jax.data.sources import Dataset
from convnext_jax.errors import InputError
from convnext_jax.models.registry import backbone_name, get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.models.variants import Preprocessing
from convnext_jax.optim.param_groups import frozen_parts
from convnext_jax.optim.schedule import learning_rate
from convnext_jax.weights.classes import difference, match_classes
from convnext_jax.weights.find import Weights, find


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the weights that a run begins with are from; the same on all processes.

    By precedence: 1. the run's own newest checkpoint; 2. those of `init_from`; 3. random.

    Attributes:
      name: how messages name them.
      model: what they are for; None: they are random.
      step: of the run's own checkpoint; 0: there is none.
      config: which the run had when it was saved; None: it is new.
      weights: of `init_from`; None: they are not needed.
      backbone: they are a classifier's, for a model that has it as its backbone.
    """

    name: str = "random weights"
    model: ModelDescription | None = None
    step: int = 0
    config: dict[str, Any] | None = None
    weights: Weights | None = None
    backbone: bool = False

    @property
    def feeding(self) -> Preprocessing | None:
        """How images were fed to the weights; None: nobody says."""
        return None if self.model is None else self.model.preprocessing

    def match(self, source: Dataset, keep_head: bool) -> tuple[Dataset, list[str]]:
        """Gives a dataset the labels that the weights have for its classes.

        Args:
          source: the dataset.
          keep_head: the config's `init_head`.

        Returns:
          The dataset, and sentences on what a user must know of its labels.

        Raises:
          InputError: they are not the same classes, and the head would be used all the same.
        """
        if self.model is None:
            return source, []
        count = self.model.spec.num_classes
        if self.backbone:
            return source, [f"all but the backbone is new, for {source.num_classes} classes"]
        if self.weights is not None and not (keep_head and count == source.num_classes):
            old = f" instead of that for {count}" if count else ""
            return source, [f"the head is new, for {source.num_classes} classes{old}"]
        try:
            return with_labels_of(self.model, source, self.name)
        except InputError as error:
            if self.weights is None:
                raise
            raise InputError(f"{error}; `--config.init_head=False` draws a new head") from error

    def remarks(self, config: Config, steps: Steps, num_examples: int) -> list[str]:
        """Sentences on where the weights are from, and on what that changes.

        Args:
          config: of the run.
          steps: its lengths.
          num_examples: of the training split.
        """
        if self.weights is not None:
            which = PARAMETERS[self.weights.parameters]
            return [
                f"starting from {self.weights} ({which})",
                *_other_feeding(config, self.feeding),
            ]
        if self.config is not None:
            return _other_schedule(config, steps, self.config, self.step, num_examples)
        return []


def find_start(config: Config, directory: epath.Path | None) -> Start:
    """Finds what a run goes on from, or starts from; reads descriptions, and files of others.

    Args:
      config: of the run.
      directory: of its checkpoints; None: it has none.

    Raises:
      InputError: what `init_from` names cannot be used, or is not the same on all processes; or
        the run was begun with another batch; or what is in `directory` is no run.
    """
    step, described = (0, None) if directory is None else _from_first(_newest(directory))
    if directory is not None and described is not None:
        if "config" not in described:
            raise InputError(
                f"{directory} holds weights that were converted, which are no run to go on with:"
                " give another `--workdir`, and start from them with `--config.init_from`"
            )
        _check_same_run(config, described["config"], directory)
        return Start(
            name=f"the run in {directory}",
            model=ModelDescription.from_json(described),
            step=step,
            config=described["config"],
        )
    if config.init_from is None:
        return Start()
    name = f"`init_from` (={config.init_from})"
    try:
        weights = find(config.init_from, ema=config.init_ema)
    except InputError as error:
        raise InputError(f"{name} cannot be used: {error}") from error
    check_same(name, weights)
    found = weights.description
    backbone = found.spec.name == backbone_name(config.model.name)
    return Start(name=name, model=found, weights=weights, backbone=backbone)


def with_labels_of(
    model: ModelDescription, source: Dataset, name: str
) -> tuple[Dataset, list[str]]:
    """Gives a dataset the labels that a model has for its classes, by their names.

    Args:
      model: whose labels.
      source: the dataset.
      name: of the model, for messages.

    Returns:
      The dataset, and sentences on what a user must know of its labels.

    Raises:
      InputError: they are not the same classes.
    """
    of = f"dataset `{source.name}`", name
    if source.num_classes != model.spec.num_classes:
        if model.class_names is not None:
            raise InputError(difference(source.class_names, model.class_names, of))
        raise InputError(
            f"{of[0]} has {source.num_classes} classes, but the model of {name} has"
            f" {model.spec.num_classes}"
        )
    found = match_classes(source.class_names, model.class_names, source.num_classes, of)
    remarks = [found.remark] if found.remark else []
    return source if found.places is None else relabelled(source, found.places), remarks


def check_same(name: str, weights: Weights) -> None:
    """Raises an InputError if a process found other weights than process 0; `name` names them."""
    found = [str(weights), weights.parameters, weights.origin.get("sha256")]
    found.append(weights.description.to_json())
    digest = hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()
    if digest != _from_first(digest):
        raise InputError(
            f"{name} must be the same on all processes, and this one found other weights there than"
            " process 0"
        )


def _newest(directory: epath.Path) -> tuple[int, dict[str, Any] | None]:
    """The newest step that can be read, and its description; 0 and None if there is none."""
    if processes.is_first():
        for step in reversed(completed_steps(directory)):
            # One that is damaged is set aside later, where all of it is looked at.
            with contextlib.suppress(Exception):
                return step, read_description(directory, step)
    return 0, None


def _from_first(value: Any) -> Any:
    """What process 0 gave, which JSON can hold, on all processes."""
    return json.loads(processes.text_from_first(json.dumps(value)))


def _check_same_run(config: Config, before: dict[str, Any], directory: epath.Path) -> None:
    """Raises an InputError if keys have changed that a run cannot go on with."""
    reasons = {
        "data.global_batch": "its place in the data and in the schedule is counted in such batches",
        "optim.freeze": "its optimiser has moments of what it trains alone",
    }
    for key, reason in reasons.items():
        section, name = key.split(".")
        now = getattr(getattr(config, section), name)
        was = before[section].get(name, getattr(getattr(Config(), section), name))
        same = frozen_parts(was) == frozen_parts(now) if key == "optim.freeze" else was == now
        if not same:
            raise InputError(
                f"`{key}` (={now or 'empty'}) must stay {was or 'empty'}, with which the run in"
                f" {directory} was begun: {reason}; another one needs a new workdir, which"
                " `--config.init_from` starts from this one's weights"
            )


def _other_feeding(config: Config, feeding: Preprocessing | None) -> list[str]:
    """Says that images are normalised otherwise than the variant's."""
    usual = get_variant(config.model.name)
    if feeding is None or (usual.mean, usual.std) == (feeding.mean, feeding.std):
        return []
    return [
        f"images are normalised as for these weights: mean {feeding.mean}, standard deviation"
        f" {feeding.std}"
    ]


def _other_schedule(
    config: Config, steps: Steps, before: dict[str, Any], step: int, num_examples: int
) -> list[str]:
    """Says that the schedule is drawn anew, if it is."""
    try:
        old_config = from_dict(before)
        old = old_config.steps(num_examples, steps.per_epoch)  # of as many images each
    except InputError:  # of a version with other keys
        return []
    if old.total == steps.total:
        return []
    was, now = (
        np.asarray(
            learning_rate(
                which.optim.schedule,
                which.optim.lr,
                total_steps=lengths.total,
                warmup_steps=lengths.warmup,
                minimum=which.optim.min_lr,
                milestones=[epoch * lengths.per_epoch for epoch in which.optim.milestones],
            )(step)
        )
        for which, lengths in ((old_config, old), (config, steps))
    )
    return [
        f"the schedule now ends after step {steps.total}, and ended after step {old.total}: it is"
        f" drawn anew over the whole run, and after step {step} the learning rate is {now:.3g}"
        f" instead of {was:.3g}"
    ]
