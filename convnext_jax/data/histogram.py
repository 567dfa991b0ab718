"""What is said at the start of a run about the labels of its masks, so that nobody has to guess."""

from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np
from PIL import Image

from convnext_jax.data.annotations import Labelling
from convnext_jax.errors import InputError

# Annotations that are counted, spread evenly over a split.
_COUNTED = 200
# Classes that a sentence names.
_NAMED = 10
_THREADS = 8


def label_notes(
    what: str,
    size: int,
    class_names: Sequence[str],
    labelling: Labelling,
    read: Callable[[int], tuple[Image.Image, str]],
) -> tuple[str, ...]:
    """Counts the labels of up to 200 annotations, and says what is frequent and what is missing.

    Args:
      what: what the sentences call the split.
      size: how many annotations it has.
      class_names: name of each class.
      labelling: how values become labels.
      read: decodes an annotation by its index, and tells its name; called from several threads.

    Raises:
      InputError: as `read`, or a value is that of no class, or all are ignored.
    """
    indices = np.linspace(0, size - 1, min(size, _COUNTED)).round().astype(int).tolist()

    def count(index: int) -> np.ndarray:
        return labelling.check(*read(index))

    with futures.ThreadPoolExecutor(_THREADS) as threads:
        pixels, ignored = labelling.label_counts(sum(threads.map(count, indices), np.zeros(256)))
    if not pixels.sum():
        raise InputError(
            f"{what}: no pixel of {len(indices)} annotations has a class: all have the value that"
            " is ignored"
        )
    of_all = pixels.sum() + ignored
    frequent = np.argsort(-pixels, kind="stable")[:_NAMED].tolist()
    seen = [f"{class_names[c]} {pixels[c] / of_all:.1%}" for c in frequent if pixels[c]] or ["none"]
    notes = (
        f"{what}: of the pixels of {len(indices)} annotations, spread evenly over {size},"
        f" {ignored / of_all:.1%} are ignored; the most frequent classes: {', '.join(seen)}",
    )
    missing = [class_names[c] for c in np.flatnonzero(pixels == 0).tolist()]
    if missing:
        more = len(missing) - _NAMED
        others = f" and {more} more" if more > 0 else ""
        notes += (
            f"{what}: {len(missing)} of the {len(class_names)} classes have no pixel in these"
            f" annotations: {', '.join(missing[:_NAMED])}{others}",
        )
    return notes
