"""Accuracy and loss of sets of parameters over a whole split."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from convnext_jax import sharding
from convnext_jax.data.normalize import normalize
from convnext_jax.data.pipeline import Passes
from convnext_jax.errors import InputError
from convnext_jax.evaluation.metrics import confusion_counts, masked_sums
from convnext_jax.processes import compile_together


class Evaluator:
    """Evaluates parameters on every example of a split, each exactly once."""

    def __init__(
        self,
        apply: Callable[..., jax.Array],
        passes: Passes,
        *,
        mesh: Mesh,
        mean: Sequence[float],
        std: Sequence[float],
        confusion: bool = False,
    ) -> None:
        """Compiles nothing yet; the first pass does, once for all passes.

        Args:
          apply: the model as a function (params, images) -> logits [N, classes].
          passes: over the split, started and closed with this evaluator.
          mesh: where batches and parameters lie.
          mean: channel means for pixels in [0, 1].
          std: channel standard deviations.
          confusion: also count which class was taken for which.
        """
        self._passes = passes
        self._mesh = mesh

        def sums(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            logits = apply(params, normalize(batch["image"], mean, std))
            sums = masked_sums(logits, batch["label"], batch["mask"])
            if confusion:
                sums["confusion"] = confusion_counts(logits, batch["label"], batch["mask"])
            return sums

        self._sums: Callable[..., dict[str, jax.Array]] | None = None  # compiled
        self._jitted = jax.jit(sums, out_shardings=sharding.replicated(mesh))

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

    def close(self) -> None:
        """Ends the threads or worker processes that read."""
        self._passes.close()

    def __call__(
        self, candidates: Mapping[str, Any], before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, Any]]:
        """Evaluates one or several sets of parameters in one pass over the data.

        Args:
          candidates: parameter trees by a name of the caller's, for instance raw and moving
            average.
          before_batch: called before each batch; what it raises ends the pass.

        Returns:
          For each name: `top1` and `top5` as fractions, the mean `loss`, how many examples these
          are over (`num_examples`) and how many could not be read (`num_skipped`), and if asked for
          `confusion`, int64 [classes, classes], counts by label (first axis) and
          prediction.

        Raises:
          InputError: the data had another number of examples than the split says, or none that
            can be read.
        """
        totals = {name: dict[str, Any]() for name in candidates}
        pending: deque[dict[str, dict[str, jax.Array]]] = deque()

        def add_oldest() -> None:
            for name, sums in jax.device_get(pending.popleft()).items():
                for key, value in sums.items():
                    totals[name][key] = totals[name].get(key, 0) + np.asarray(value, np.float64)

        with contextlib.closing(self._passes()) as batches:
            for rows in batches:
                before_batch()
                batch = sharding.global_batch(rows, self._mesh)
                if self._sums is None:
                    params = next(iter(candidates.values()))
                    self._sums = compile_together(self._jitted, params, batch)
                pending.append({name: self._sums(p, batch) for name, p in candidates.items()})
                # One batch is decoded while another is computed; more would only fill memory.
                if len(pending) > 1:
                    add_oldest()
            while pending:
                add_oldest()
        return {name: self._means(total) for name, total in totals.items()}

    def _means(self, total: dict[str, Any]) -> dict[str, Any]:
        count = int(total.get("count", 0))
        skipped = self._passes.num_examples - count
        if skipped and not (self._passes.may_skip and count and skipped > 0):
            raise InputError(
                f"evaluation saw {count} examples, but the split has {self._passes.num_examples}"
            )
        means: dict[str, Any] = {key: float(total[key] / count) for key in ("top1", "top5", "loss")}
        means |= {"num_examples": count, "num_skipped": skipped}
        if "confusion" in total:
            means["confusion"] = total["confusion"].astype(np.int64)
        return means
