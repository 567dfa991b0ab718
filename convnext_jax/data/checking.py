"""Reads every example of a dataset, to say before a run what would be wrong in it."""

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from convnext_jax.constants import IGNORED
from convnext_jax.data.instances import Objects
from convnext_jax.data.pieces import read_example
from convnext_jax.data.reading import Reader
from convnext_jax.errors import InputError

# Examples that a worker reads before it reports.
_CHUNK = 32
_PREFETCH = 8


def has_masks(source: Any) -> bool:
    """Whether its examples have masks, and not labels; reads nothing."""
    return hasattr(type(source), "largest")


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Maps the number of a chunk to facts of its examples."""

    source: Any

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Facts by name, a row for each example; `error` is empty where it can be read."""
        indices = range(number * _CHUNK, min((number + 1) * _CHUNK, len(self.source)))
        rows = [self._facts(index) for index in indices]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _facts(self, index: int) -> dict[str, Any]:
        facts = {"index": index, "height": 0, "width": 0, "digest": 0, "error": ""}
        facts["counts"] = np.zeros(_places(self.source), np.int64)
        facts["label"] = -1
        try:
            image, label = read_example(self.source, index)
        except InputError as error:
            return facts | {"error": str(error)}
        digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=8)
        digest.update(image.tobytes())
        facts["digest"] = np.frombuffer(digest.digest(), np.int64)[0]
        if isinstance(label, Objects):
            facts["counts"] = np.bincount(label.labels, minlength=len(facts["counts"]))
        elif isinstance(label, np.ndarray):
            facts["counts"] = np.bincount(label.ravel(), minlength=IGNORED + 1)
        else:
            facts["label"] = label
        return facts | {"height": image.height, "width": image.width}


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """What a split holds.

    Attributes:
      name: of the dataset and the split.
      notes: sentences that the dataset says of itself.
      errors: what is wrong with each example that cannot be read, by index.
      class_names: by label.
      examples: int [classes], images of each class; of masks and objects, images that have it.
      pixels: int [classes], of masks; empty for labels.
      sizes: int [N, 2], height and width of each image that can be read.
      indices: int [N], its index.
      digests: int64 [N], a hash of its pixels.
      labels: int [N], its class; -1 where that is a mask, or objects.
    """

    name: str
    notes: tuple[str, ...]
    errors: dict[int, str]
    class_names: tuple[str, ...]
    examples: np.ndarray
    pixels: np.ndarray
    sizes: np.ndarray
    indices: np.ndarray
    digests: np.ndarray
    labels: np.ndarray


def read_all(
    source: Any, *, workers: int, threads: int, advance: Callable[[int], object]
) -> SplitFacts:
    """Reads every example of a split.

    Args:
      source: of images with a class, a mask or objects each.
      workers: processes that read; 0: threads of this one.
      threads: in each of them.
      advance: is told how many more were read.

    Raises:
      Lost: reading fails for reasons that are not the data's.
    """
    errors: dict[int, str] = {}
    kept = collections.defaultdict[str, list[np.ndarray]](list)
    with_pixels = has_masks(source)
    places = _places(source)
    examples, pixels = np.zeros((2, places or source.num_classes), np.int64)
    reader = Reader(
        _Chunk(source),
        per_batch=1,
        start=0,
        stop=-(-len(source) // _CHUNK),
        workers=workers,
        threads=threads,
        prefetch=_PREFETCH,
    )
    with contextlib.closing(reader):
        for chunk in reader:
            good = chunk["error"] == ""
            bad = zip(chunk["index"][~good].tolist(), chunk["error"][~good].tolist(), strict=True)
            errors |= dict(bad)
            for name in ("index", "digest", "label", "height", "width"):
                kept[name].append(chunk[name][good])
            if places:
                pixels += chunk["counts"].sum(0)
                examples += (chunk["counts"] > 0).sum(0)
            else:
                examples += np.bincount(chunk["label"][good], minlength=len(examples))
            advance(len(good))
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    return SplitFacts(
        name=str(source),
        notes=source.notes,
        errors=dict(sorted(errors.items())),
        class_names=source.class_names,
        examples=examples[: source.num_classes],
        pixels=pixels[: source.num_classes] if with_pixels else np.zeros(0, np.int64),
        sizes=np.stack([joined["height"], joined["width"]], 1),
        indices=joined["index"],
        digests=joined["digest"],
        labels=joined["label"],
    )


def _places(source: Any) -> int:
    """How many kinds of pixels or of objects an image may have; 0: it has one class."""
    if has_masks(source):
        return IGNORED + 1
    return source.num_classes if hasattr(source, "objects") else 0


def same_pixels(one: SplitFacts, other: SplitFacts | None = None) -> list[tuple[int, int]]:
    """Pairs of examples whose images have the same pixels.

    Args:
      one: a split.
      other: another one; None: pairs within the first.

    Returns:
      Pairs of indices, sorted: each image of `other` with the first like it in `one`; or each image
      of `one` with the first like it.
    """
    order = np.argsort(one.digests, kind="stable")
    digests = one.digests[order]
    asked = one if other is None else other
    places = np.searchsorted(digests, asked.digests)
    inside = places < len(digests)
    same = np.zeros(len(places), bool)
    same[inside] = digests[places[inside]] == asked.digests[inside]
    first = one.indices[order[np.where(same, places, 0)]] if len(order) else places
    pairs = zip(first[same].tolist(), asked.indices[same].tolist(), strict=True)
    return sorted(pair for pair in pairs if other is not None or pair[0] != pair[1])
