"""Parts of a user's own folders: `train[:80%]` and `train[80%:]` share a folder between splits."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from convnext_jax.errors import InputError

# How a folder that is itself the split is written: the root.
ROOT = "."
_ENDS = (("start", 0), ("stop", 100))
_NOTATION = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?:(?P<start>[0-9]+)%)?:(?:(?P<stop>[0-9]+)%)?\])?")


class Part(NamedTuple):
    """A folder, and which of its files belong to a split.

    Attributes:
      folder: its name; `.`: the root itself.
      start: percentage at which the split begins.
      stop: percentage at which it ends.
    """

    folder: str
    start: int
    stop: int

    def of(self, files: Sequence[str]) -> list[str]:
        """The part of some files, in the order they are given in.

        Files are shared out in the order of a hash of their names: at random, as good as, and the
        same wherever the folder lies. Of parts that share no percentage none has a file of
        another, and a file that is added moves at most one other from part to part.

        Args:
          files: paths in the folder, in any order.
        """
        if (self.start, self.stop) == (0, 100):
            return list(files)
        keys = [_key(file) for file in files]
        order = sorted(range(len(files)), key=keys.__getitem__)
        first, end = ((len(files) * share + 50) // 100 for share in (self.start, self.stop))
        return [files[place] for place in sorted(order[first:end])]


def part_of(split: str, root: Path) -> Part:
    """Reads a split: the name of a folder, or a part of one in TFDS's notation.

    Args:
      split: such as `train`, `train[:80%]`, `.[80%:]` or `all[10%:30%]`.
      root: where the folder is; one whose own name is written so comes first.

    Raises:
      InputError: it is neither, or has no files.
    """
    if (root / split).is_dir():
        return Part(split, 0, 100)
    found = _NOTATION.fullmatch(split)
    start, stop = (int(found[key] or default) for key, default in _ENDS) if found else (0, 0)
    if found is None or not 0 <= start < stop <= 100:
        raise InputError(
            f"split `{split}` must be a folder, or a part of one in whole percent, such as"
            " train[:80%] and train[80%:]"
        )
    return Part(found["name"], start, stop)


def _key(file: str) -> bytes:
    name = os.fsencode(file)
    # Names that differ never have the same key.
    return hashlib.blake2b(name, digest_size=8).digest() + name
