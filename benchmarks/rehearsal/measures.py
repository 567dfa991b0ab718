"""Numbers from samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# Means of so many successive groups of samples go into a slope's error: neighbouring samples are
# alike, and would make it too small.
_GROUPS = 10


def slope(steps: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """A line through samples, by least squares.

    Args:
      steps: where each was taken.
      values: what it was.

    Returns:
      `per_1000_steps`: the slope; `noise`: twice its standard error, from the means of groups of
      successive samples; `samples`: their number.

    Raises:
      ValueError: there are too few samples.
    """
    if len(steps) < 3 * _GROUPS:
        raise ValueError(f"a slope needs {3 * _GROUPS} samples, not {len(steps)}")
    x = np.array([group.mean() for group in np.array_split(np.asarray(steps, float), _GROUPS)])
    y = np.array([group.mean() for group in np.array_split(np.asarray(values, float), _GROUPS)])
    x -= x.mean()
    rise = float(x @ y / (x @ x))
    left = y - y.mean() - rise * x
    error = math.sqrt(float(left @ left) / (_GROUPS - 2) / float(x @ x))
    return {"per_1000_steps": 1000 * rise, "noise": 2000 * error, "samples": len(steps)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and largest."""
    return {"mean": sum(values) / len(values), "max": max(values)}


def by_role(processes: Sequence[Any]) -> dict[str, Any]:
    """What processes take, by their role: their number, and `spread` of memory and open files."""
    result = {}
    for role in ("main", "worker", "other"):
        found = [process for process in processes if process.role == role]
        if found:
            result[role] = {"count": len(found)} | {
                name: spread([getattr(process, name) for process in found])
                for name in ("pss", "rss", "files")
            }
    return result
