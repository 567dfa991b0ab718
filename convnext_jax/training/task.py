"""What a task is to the loop, which knows neither labels nor masks nor boxes.

Each task has a wing of its own, a package beside this one, whose `task.py` makes one of these.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from convnext_jax.data.pieces import EvalExamples, Order, TrainExamples
from convnext_jax.models.spec import ModelDescription

Batch = dict[str, jax.Array]
# (params, batch_stats, batch, key) -> (loss, new batch_stats, other scalars by name), pure, of one
# micro-batch: the loss is the mean that is to fall, the other scalars are reported beside it.
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """The result of an evaluation by which checkpoints are compared: a fraction, the higher wins.

    Attributes:
      name: as records have it.
      label: as people read it.
    """

    name: str
    label: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is computed of a batch, and what comes out over all of them.

    Attributes:
      examples: makes a row of a batch of an example of the source.
      sums: (params, batch_stats, batch) -> arrays by name, which are added up over devices,
        processes and batches; `count` is that of the examples whose `mask` is 1.
      results: those totals -> numbers by name, fractions among them.
      metric: which of them decides.
      key: two of one model with equal keys have the same `sums`, and may share a compiled program;
        None: nothing is known.
      found: (params, batch_stats, batch) -> arrays [N, ...] by name, what is found in each example,
        where results are no function of sums; None: nothing else is wanted.
      record: (rows as they were read, what was found in them), NumPy arrays of one process's rows
        -> a list of what JSON can hold, for each example whose `mask` is 1. `results` is given all
        of them, of all processes, as `records`.
      order: (the data, examples of a batch) -> which example is in each row of the batches, one
        after another, and -1 for filling up; None: the data's own order.
    """

    examples: EvalExamples
    sums: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    results: Callable[[Mapping[str, np.ndarray]], dict[str, Any]]
    metric: Metric
    key: Hashable = None
    found: Callable[[Any, Any, Batch], dict[str, jax.Array]] | None = None
    record: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], list[Any]] | None = None
    order: Callable[[Any, int], Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A model and what it is trained and evaluated for.

    Attributes:
      model: what is trained, and how its images are fed to it.
      examples: makes a row of a batch of an example of the source; its `blank` row says the shapes
        and types of all.
      loss: of a micro-batch.
      evaluation: of the held-out examples.
      scalars: names of what the loss reports beside itself.
      batch_stats: the model's state that no gradient changes, before the first step: a tree, empty
        for most.
      remarks: sentences that a user must know at the start.
      pictures: (micro-batch, key) -> uint8 [N, H, W, 3], what the loss feeds the model with, for
        people; None: nothing to look at.
      order: (the data) -> which example is where in the batches, where their rows must fit each
        other; None: all of them at random.
      steps_per_epoch: (number of examples) -> steps, where there is an `order`; None: as many as
        there are whole batches.
    """

    model: ModelDescription
    examples: TrainExamples
    loss: Loss
    evaluation: Evaluation
    scalars: tuple[str, ...] = ()
    batch_stats: Any = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    pictures: Callable[[Batch, jax.Array], jax.Array] | None = None
    order: Callable[[Any], Order] | None = None
    steps_per_epoch: Callable[[int], int] | None = None

    def batch(self, examples: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a batch of so many examples."""
        return {
            name: jax.ShapeDtypeStruct((examples, *np.shape(value)), np.asarray(value).dtype)
            for name, value in self.examples.blank.items()
        }
