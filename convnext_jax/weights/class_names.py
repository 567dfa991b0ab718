"""Names of classes that people can read."""

import functools
import importlib.resources
from collections.abc import Sequence

from convnext_jax.constants import IMAGENET_1K_CLASSES


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """The classes of ImageNet-1K in the order of their labels: WordNet id to a short English name.

    The names are words of WordNet (Princeton University), for each class the first of its synset.
    Five have another or more words, so that no two are alike.
    """
    file = importlib.resources.files("convnext_jax.weights") / "imagenet_classes.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return {wordnet_id: name for wordnet_id, _, name in (line.partition(" ") for line in lines)}


def readable(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...] | None:
    """Names for people, of the classes of a model.

    Args:
      class_names: as the dataset or the weights have them, by label; None: they have none.
      num_classes: how many there are.

    Returns:
      The names, with English ones in place of WordNet ids. Where there are none, those of
      ImageNet-1K if the number of classes is its, else None.
    """
    known = imagenet_classes()
    if class_names is None:
        return tuple(known.values()) if num_classes == IMAGENET_1K_CLASSES else None
    return tuple(known.get(name, name) for name in class_names)
