"""What a report shows of a model's behaviour on examples, for each task that has something."""

from collections.abc import Callable
from typing import Any

from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription
from convnext_jax.report import page
from convnext_jax.report.mistakes import find_mistakes


def look(
    model: ModelDescription, arrays: Callable[[], tuple[Any, Any]], source: Any, examples: int
) -> list[str]:
    """Sections of a page.

    Args:
      model: described with its preprocessing.
      arrays: gives its parameters and batch statistics, if they are needed.
      source: examples that it was not trained on, with its labels.
      examples: how many of them to look at.
    """
    if get_variant(model.spec.name).task != "classification":
        return []
    found = find_mistakes(model, *arrays(), source, examples=examples)
    return [page.classes(found), page.mistakes(found)]
