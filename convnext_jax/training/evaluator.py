"""What a task evaluates, over a whole split."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from convnext_jax import processes, sharding
from convnext_jax.data.pipeline import Passes
from convnext_jax.errors import InputError
from convnext_jax.ops.few_images import batch_over
from convnext_jax.training.task import Evaluation


class Program:
    """What an evaluation computes of a batch, compiled for the first; evaluators may share it."""

    def __init__(self, evaluation: Evaluation, mesh: Mesh) -> None:
        """Compiles nothing yet.

        Args:
          evaluation: a task's.
          mesh: where batches and variables lie.
        """
        self._compiled: Callable[..., tuple[Any, Any]] | None = None

        def compute(params: Any, batch_stats: Any, batch: Any) -> tuple[Any, Any]:
            found = {} if evaluation.found is None else evaluation.found(params, batch_stats, batch)
            return evaluation.sums(params, batch_stats, batch), found

        places = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._jitted = jax.jit(batch_over(mesh)(compute), out_shardings=places)

    def __call__(self, variables: tuple[Any, Any], batch: Any) -> tuple[Any, Any]:
        """Sums over a batch, of the shapes of the first one, and what is found in its rows."""
        if self._compiled is None:
            self._compiled = processes.compile_together(self._jitted, *variables, batch)
        return self._compiled(*variables, batch)


class Evaluator:
    """Evaluates sets of variables on every example of a split, each exactly once."""

    def __init__(
        self, evaluation: Evaluation, passes: Passes, *, mesh: Mesh, program: Program | None = None
    ) -> None:
        """Compiles nothing yet; the first pass does, once for all passes.

        Args:
          evaluation: the task's.
          passes: over the split, started and closed with this evaluator.
          mesh: where batches and variables lie.
          program: of an evaluation with the same sums, and batches of the same shapes; None: none
            is there yet.
        """
        self._evaluation = evaluation
        self._passes = passes
        self._mesh = mesh
        self._program = Program(evaluation, mesh) if program is None else program

    def start(self) -> None:
        """Begins to read ahead for the first pass, unless that was done before.

        Raises:
          InputError: an example cannot be used, as far as is known by now.
        """
        self._passes.start()

    @property
    def skipped(self) -> dict[int, str]:
        """What is wrong with each example that this process had to leave out so far."""
        return self._passes.skipped

    @property
    def batch(self) -> int:
        """Examples a batch, over all processes; the last one may have fewer."""
        return self._passes.global_batch

    def close(self) -> None:
        """Ends the threads or worker processes that read."""
        self._passes.close()

    def __call__(
        self,
        candidates: Mapping[str, tuple[Any, Any]],
        before_batch: Callable[[], object] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """Evaluates one or several sets of variables in one pass over the data.

        Args:
          candidates: parameters and batch statistics by a name of the caller's, for instance raw
            and moving average.
          before_batch: called before each batch; what it raises ends the pass.

        Returns:
          For each name: what the evaluation says, how many examples that is over (`num_examples`),
          and how many could not be read (`num_skipped`).

        Raises:
          InputError: as `totals`.
        """
        totals = self.totals(candidates, before_batch)
        return {name: results_of(self._evaluation, total) for name, total in totals.items()}

    def totals(
        self,
        candidates: Mapping[str, tuple[Any, Any]],
        before_batch: Callable[[], object] = lambda: None,
    ) -> dict[str, dict[str, Any]]:
        """What `results_of` makes results of; totals of several parts of a split can be added up.

        Args:
          candidates: as above.
          before_batch: as above.

        Returns:
          For each name the sums of the evaluation, float64; `records`, a list, where it makes
          some; and `skipped`, how many examples could not be read.

        Raises:
          InputError: the data had another number of examples than the split says, or none that
            can be read.
        """
        totals = {name: dict[str, Any]() for name in candidates}
        records = {name: list[Any]() for name in candidates}
        pending: deque[tuple[Any, dict[str, tuple[Any, Any]]]] = deque()
        record = self._evaluation.record

        def add_oldest() -> None:
            rows, computed = pending.popleft()
            for name, (sums, found) in computed.items():
                for key, value in jax.device_get(sums).items():
                    totals[name][key] = totals[name].get(key, 0) + np.asarray(value, np.float64)
                if record is not None:
                    records[name] += record(rows, jax.tree.map(sharding.local_rows, found))

        with contextlib.closing(self._passes()) as batches:
            for rows in batches:
                before_batch()
                batch = sharding.global_batch(rows, self._mesh)
                computed = {name: self._program(v, batch) for name, v in candidates.items()}
                pending.append((rows if record is not None else None, computed))
                # One batch is decoded while another is computed; more would only fill memory.
                if len(pending) > 1:
                    add_oldest()
            while pending:
                add_oldest()
        if record is not None:
            for name, own in records.items():
                totals[name]["records"] = processes.lists_from_all(own)
        return {name: self._checked(total) for name, total in totals.items()}

    def _checked(self, total: dict[str, Any]) -> dict[str, Any]:
        count = int(total.get("count", 0))
        skipped = self._passes.num_examples - count
        if skipped and not (self._passes.may_skip and count and skipped > 0):
            raise InputError(
                f"evaluation saw {count} examples, but the split has {self._passes.num_examples}"
            )
        return total | {"skipped": skipped}


def results_of(evaluation: Evaluation, totals: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an evaluation, with `num_skipped` and, unless it says so, `num_examples`."""
    numbers = {"num_examples": int(totals["count"]), "num_skipped": int(totals["skipped"])}
    return numbers | evaluation.results(totals)
