"""Whether two lists of classes are the same classes, and which is which."""

import dataclasses
import re
from collections.abc import Sequence

from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.data import ade20k_classes
from convnext_jax.errors import InputError
from convnext_jax.weights.class_names import imagenet_classes

_WORDNET_ID = re.compile(r"n\d{8}")
# How many names of a list a message shows.
_SHOWN = 5
# For so many of ADE20K's classes others may have another of their synonyms.
_OTHER_WORDS = 10

Names = Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Match:
    """How the labels of a dataset become those of a model.

    Attributes:
      places: the model's label for each of the dataset's; None: they are equal.
      remark: what a user must know of it, a sentence; empty where all names are equal.
    """

    places: tuple[int, ...] | None = None
    remark: str = ""


def match_classes(dataset: Names, model: Names, count: int, of: tuple[str, str]) -> Match:
    """Matches the classes of a dataset with a model's, by their names.

    WordNet ids and names of ImageNet's classes stand for each other; numbers, which as names of
    folders sort as 0, 1, 10, 100, for the other's labels. Where one list has no names,
    or names that cannot be compared with the other's (WordNet ids against words, or numbers), the
    classes are taken in their order, and the remark says so.

    Args:
      dataset: its class names, by label; None: unknown.
      model: likewise.
      count: of classes, which both have.
      of: how messages name the two, such as "dataset `folder`" and "the checkpoint runs/x".

    Raises:
      InputError: they are not the same classes; the message names both lists.
    """
    by_number = _by_number(dataset, model, of)
    if by_number is not None:
        return by_number
    guessed = model is None and count == IMAGENET_1K_CLASSES
    if guessed:  # published weights of so many classes are ImageNet's
        model = tuple(imagenet_classes())
    if dataset is None or model is None:
        which = of[0] if dataset is None else of[1]
        return Match(remark=f"classes are matched by their order: {which} has no names for them")
    for ours, theirs in ((dataset, model), (canonical(dataset), canonical(model))):
        if tuple(ours) == tuple(theirs):
            return Match()
        labels = {name: label for label, name in enumerate(theirs)}
        if len(labels) == count == len(set(ours)) and labels.keys() == set(ours):
            remark = f"classes are matched by their names: {of[0]} has them in another order"
            return Match(tuple(labels[name] for name in ours), remark)
    if tuple(dataset) == ade20k_classes.CLASSES:
        others = [f"{o} / {t}" for o, t in zip(dataset, model, strict=False) if o != t]
        if len(model) == count and len(others) <= _OTHER_WORDS:
            return Match(
                remark=f"classes are matched by their order: {of[1]} has other words for"
                f" {', '.join(others)}"
            )
    if guessed or _incomparable(dataset, model):
        return Match(
            remark=f"classes are matched by their order: the names of {of[0]} ({_shown(dataset)})"
            f" and of {of[1]} ({'unknown' if guessed else _shown(model)}) cannot be compared"
        )
    raise InputError(difference(dataset, model, of))


def _by_number(dataset: Names, model: Names, of: tuple[str, str]) -> Match | None:
    """Matches where one list alone is the numbers of the labels, in another order."""
    ours, theirs = _numbers(dataset), _numbers(model)
    if ours is not None and theirs is None:
        places, whose = ours, of[0]
    elif theirs is not None and ours is None:
        places, whose = tuple(map(theirs.index, range(len(theirs)))), of[1]
    else:
        return None
    if places == tuple(range(len(places))):
        return None
    return Match(places, f"classes are matched by their numbers: {whose} has no other names")


def _numbers(names: Names) -> tuple[int, ...] | None:
    """The numbers that names are, if they are 0 to their count - 1 in some order."""
    if names is None or {str(label) for label in range(len(names))} != set(names):
        return None
    return tuple(map(int, names))


def difference(dataset: Sequence[str], model: Sequence[str], of: tuple[str, str]) -> str:
    """Says that two lists are not the same classes: their lengths, beginnings and differences."""
    parts = [
        f"{whose} has {len(names)} ({_shown(names)})"
        for whose, names in zip(of, (dataset, model), strict=True)
    ]
    ours, theirs = set(canonical(dataset)), set(canonical(model))
    for whose, names, others in ((of[0], dataset, theirs), (of[1], model, ours)):
        alone = [
            name for name, known in zip(names, canonical(names), strict=True) if known not in others
        ]
        if alone:
            parts.append(f"only {whose} has {_shown(alone)}")
    return f"the classes of {of[0]} must be those of {of[1]}: {'; '.join(parts)}"


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """Replaces the names of ImageNet-1K's classes by WordNet ids; other names stay.

    A name may be any of the words of a synset, or several with commas between them ("tench, Tinca
    tinca"). Those that may mean several ("crane" is two classes) are known by their place where all
    names stand where ImageNet has them.
    """
    known = imagenet_classes()
    by_word: dict[str, set[str]] = {}
    for wordnet_id, name in known.items():
        for word in {name, name.partition(" (")[0]}:  # "crane (bird)"
            by_word.setdefault(word.casefold(), set()).add(wordnet_id)

    def meant(name: str) -> set[str]:
        words = [word.strip().casefold() for word in name.split(",")]
        return {name} if name in known else set().union(*(by_word.get(w, ()) for w in words))

    found = [meant(name) for name in names]
    if len(names) == len(known) and all(x in ids for x, ids in zip(known, found, strict=True)):
        return tuple(known)
    return tuple(
        next(iter(ids)) if len(ids) == 1 else name for ids, name in zip(found, names, strict=True)
    )


def _incomparable(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the names are of two kinds: numbers in order or WordNet ids, and others."""
    for names, others in ((one, other), (other, one)):
        if list(names) == [str(label) for label in range(len(names))]:
            return True
        ids = [_WORDNET_ID.fullmatch(name) is not None for name in (*names, *others)]
        if all(ids[: len(names)]) and not any(ids[len(names) :]):
            return not set(canonical(one)) & set(canonical(other))
    return False


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
