"""Weights on the devices, scored on one dataset after another."""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from convnext_jax import builders, processes, starting
from convnext_jax.config import Config, from_dict
from convnext_jax.data.imagenet_subsets import SUBSETS
from convnext_jax.data.open_files import allow_open_files
from convnext_jax.data.relabelled import Relabelled
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.scoring.test_sets import split_of
from convnext_jax.training.evaluator import Program, results_of
from convnext_jax.training.task import Evaluation
from convnext_jax.weights.class_names import imagenet_classes
from convnext_jax.weights.classes import canonical, difference
from convnext_jax.weights.find import Weights
from convnext_jax.wings import wing_of

# Keys of `segmentation` that say what the values of annotations mean.
_ANNOTATIONS = ("first_label", "ignored")


def config_for(
    weights: Weights, data: Mapping[str, Any], annotations: Mapping[str, Any] | None = None
) -> Config:
    """The config by which data is read for weights; a run says what it evaluated on.

    Args:
      weights: what is scored.
      data: keys of `data` that take the place of the run's; None: they do not.
      annotations: likewise keys of `segmentation` on the values of annotations.

    Raises:
      InputError: no dataset is given, and the weights come from no run.
    """
    # Converted weights say nothing of a dataset.
    detects = get_variant(weights.description.spec.name).task == "detection"
    at_once = jax.device_count() if detects else 64  # a detector's images are large
    values = copy.deepcopy(weights.config or {"data": {"name": None, "global_batch": at_once}})
    given = {key: value for key, value in data.items() if value is not None}
    ran_on = values["data"]["name"]
    # What a run said of its own dataset's split and annotations does not hold for another.
    inherited = given.get("name") in (None, ran_on)
    of_masks = values.get("segmentation", {})
    kept = {key: value for key, value in of_masks.items() if inherited or key not in _ANNOTATIONS}
    if not inherited and (split := split_of(given["name"])) is not None:
        given = {"eval_split": split} | given
    values["segmentation"] = kept | dict(annotations or {})
    if not inherited:
        values["data"] |= {"annotations": None, "eval_annotations": None}
    values["data"] |= given
    if values["data"]["name"] is None:
        raise InputError(f"`--dataset` must be given: {weights.source} comes from no run")
    values["data"]["exif"] = weights.description.preprocessing.exif
    return from_dict(values)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A dataset with a model's labels.

    Attributes:
      source: its examples by index.
      config: how they are read.
      whole: nothing is cut off its images.
      among: the labels that count, if not as the source has it.
      subsets: the labels of `SUBSETS`, by their names, where the model has ImageNet-1K's classes.
      remarks: sentences that a user must know of its labels.
    """

    source: Any
    config: Config
    whole: bool = False
    among: tuple[int, ...] | None = None
    subsets: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    remarks: Sequence[str] = ()


class Scorer:
    """Weights that are read once; what is compiled for one dataset serves others."""

    def __init__(self, weights: Weights, mesh: Mesh) -> None:
        """Reads nothing yet.

        Args:
          weights: what is scored.
          mesh: the devices.
        """
        self.weights = weights
        self.model = weights.description
        self.wing = wing_of(self.model.spec.name)
        self._mesh = mesh
        self._programs: dict[Any, Program] = {}

    @functools.cached_property
    def _variables(self) -> tuple[Any, Any]:
        return self.weights.read(self._mesh), self.weights.batch_stats(self._mesh)

    def open(
        self,
        config: Config,
        *,
        classes: str | None = None,
        whole: bool = False,
        partial: bool = False,
        say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
    ) -> Opened:
        """Opens a dataset, with the labels that the model has for its classes.

        Args:
          config: whose `data.eval_split` it is.
          classes: a key of `SUBSETS`: images of other classes do not count, nor do predictions of
            them. Of released folders, the dataset may have these classes alone. None: as the
            dataset has it.
          whole: cut nothing off the images: they are resized to the model's size as they are.
          partial: the dataset may have some of the classes alone.
          say: told what is left out of the dataset, on the first process.

        Raises:
          InputError: it is not there, or its classes are not the model's.
        """
        source = self.wing.open(config, config.data.eval_split)
        for note in source.notes if processes.is_first() else ():
            say(note)
        source, among, remarks = of_classes(self.model, source, str(self.weights), classes, partial)
        allow_open_files([source], builders.workers_of(config.data))
        classes_of = imagenet_labels(self.model)[0]
        subsets = {
            name: tuple(sorted(classes_of.index(each) for each in ids))
            for name, ids in _subset_ids().items()
            if set(ids) <= set(classes_of) and not getattr(source, "lists", False)
        }
        return Opened(source, config, whole, among, subsets, remarks)

    def score(
        self,
        opened: Opened,
        options: Mapping[str, Any],
        moved: Callable[[int], object],
        say: Callable[[str], object],
    ) -> dict[str, Any]:
        """Evaluates the weights on every example, each once.

        Args:
          opened: what `open` gave.
          options: of the task, as its wing names them.
          moved: told how many more examples are done.
          say: told of each example that cannot be read, where those are skipped.

        Returns:
          What the task's evaluation says, `num_examples` and `num_skipped`; JSON's values, and
          arrays where `options` ask for them.

        Raises:
          InputError: an example cannot be used.
        """
        data = opened.config.data
        chosen = dict(options) | ({} if opened.among is None else {"among": opened.among})
        parts = self.wing.parts(
            _fed_whole(self.model) if opened.whole else self.model,
            opened.source,
            skip=data.on_error == "skip",
            **chosen,
        )
        totals: dict[str, Any] = {}
        for part, evaluation in parts:
            evaluator = builders.build_evaluator(
                evaluation,
                part,
                data,
                self._mesh,
                program=self._program(evaluation, data.eval_batch),
                option="--on_error",
                batch_option="--batch_size",
            )
            done = 0

            def before_batch(evaluator: Any = evaluator) -> None:
                nonlocal done
                done += evaluator.batch
                moved(evaluator.batch)

            found = evaluator.totals({"": self._variables}, before_batch)
            for name, value in found[""].items():
                totals[name] = totals[name] + value if name in totals else value
            evaluator.close()
            moved(len(part) - done)  # the last batch is not full
            for reason in evaluator.skipped.values():
                say(f"skipped: {reason}")
        totals["skipped"] = len(opened.source) - int(totals["count"])
        return results_of(parts[0][1], totals)

    def _program(self, evaluation: Evaluation, batch: int | None) -> Program | None:
        """The program of an evaluation, where an equal one can be told."""
        if evaluation.key is None:
            return None
        key = evaluation.key, batch
        if key not in self._programs:
            self._programs[key] = Program(evaluation, self._mesh)
        return self._programs[key]


def _fed_whole(model: ModelDescription) -> ModelDescription:
    """A model whose images are resized to its size as they are."""
    feeding = dataclasses.replace(model.preprocessing, crop_fraction=1.0, crop_mode="squash")
    return dataclasses.replace(model, preprocessing=feeding)


def of_classes(
    model: ModelDescription, source: Any, name: str, classes: str | None, partial: bool = False
) -> tuple[Any, tuple[int, ...] | None, list[str]]:
    """A dataset with a model's labels, and which of them count.

    Args:
      model: whose labels it gets.
      source: it; has all of the model's classes, or those that count alone, as released folders do.
      name: of the model, for messages.
      classes: which of ImageNet-1K's count, a key of `SUBSETS`; None: all.
      partial: the dataset may have some of these.

    Returns:
      The dataset, the labels that count, if not all, and sentences on what a user must know.

    Raises:
      InputError: the dataset or the model has other classes.
    """
    theirs, remarks = imagenet_labels(model)
    ids = theirs if classes is None else _subset_ids()[classes]
    if len(theirs) != model.spec.num_classes or not set(ids) <= set(theirs):
        if classes is None:
            return _as_it_is(model, source, name)
        raise InputError(
            f"`{classes}` has {len(ids)} of ImageNet-1K's classes, and the model of {name}, which"
            f" must have them, has {model.spec.num_classes} classes"
        )
    if getattr(source, "lists", False) and classes is not None:
        raise InputError(f"dataset `{source.name}` has several labels an image: none are chosen")
    among = None if classes is None else tuple(sorted(map(theirs.index, ids)))
    names = canonical(source.class_names)
    some = partial and set(names) < set(ids)
    if source.num_classes < model.spec.num_classes and (some or set(names) == set(ids)):
        places = [theirs.index(each) for each in names]
        return Relabelled(source, places, theirs), among, remarks
    if classes is not None and source.num_classes < len(theirs):
        of = f"dataset `{source.name}`", f"`{classes}`"
        raise InputError(difference(source.class_names, ids, of))
    source, _, remarks = _as_it_is(model, source, name)
    return source, among, remarks


@functools.cache
def _subset_ids() -> dict[str, tuple[str, ...]]:
    """The classes of `SUBSETS` by their WordNet ids."""
    known = tuple(imagenet_classes())
    return {name: tuple(known[place] for place in places) for name, places in SUBSETS.items()}


def imagenet_labels(model: ModelDescription) -> tuple[tuple[str, ...], list[str]]:
    """The classes of a model, ImageNet-1K's by their WordNet ids; and what a user must know.

    Where nothing or numbers name 1,000 of them, they are taken for ImageNet-1K's.
    """
    known = tuple(imagenet_classes())
    named = model.class_names
    if named is None:
        return known, []
    if set(named) == {str(label) for label in range(len(known))}:
        return tuple(known[int(name)] for name in named), ["classes are matched by their numbers"]
    return canonical(named), []


def _as_it_is(model: ModelDescription, source: Any, name: str) -> tuple[Any, None, list[str]]:
    source, remarks = starting.with_labels_of(model, source, name)
    return source, None, remarks
