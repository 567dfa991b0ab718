"""The test sets that papers give numbers on: what they are called, and where they lie.

A set is either prepared by `python -m convnext_jax.data.prepare`, or its released archive is
unpacked below the data directory. ImageNet-C and C-bar are read as they were released.
"""

import dataclasses
import os
from pathlib import Path

from convnext_jax.data.folder import NAME as FOLDER
from convnext_jax.data.prepared import base_name, default_data_dir, find_prepared, prepare_command
from convnext_jax.errors import InputError
from convnext_jax.scoring.corruptions import ALEXNET_ERRORS, C_BAR, SEVERITIES

# Missing folders that a message names.
_NAMED = 3


class NotThere(InputError):
    """A test set is not there at all; the sentence says how it would be."""


@dataclasses.dataclass(frozen=True)
class TestSet:
    """One test set.

    Attributes:
      title: its name among people.
      images: that were released, of each part.
      folder: of its released archive, below the data directory; empty: none is read.
      dataset: its name among prepared datasets; empty: it is not prepared.
      split: of that dataset.
      classes: a key of `SUBSETS` if not all 1,000.
      corruptions: it has a folder for each, with one for each severity.
      whole: the images are as networks of 224 pixels take them: nothing is cut off.
    """

    __test__ = False  # pytest takes what begins with Test for one

    title: str
    images: int
    folder: str = ""
    dataset: str = ""
    split: str = "test"
    classes: str | None = None
    corruptions: tuple[str, ...] = ()
    whole: bool = False


TEST_SETS = {
    "imagenet": TestSet("ImageNet-1K", 50_000, "val", "imagenet2012", "validation"),
    "imagenet_a": TestSet("ImageNet-A", 7_500, "imagenet-a", "imagenet_a", classes="imagenet_a"),
    "imagenet_r": TestSet("ImageNet-R", 30_000, "imagenet-r", "imagenet_r", classes="imagenet_r"),
    "imagenet_sketch": TestSet("ImageNet-Sketch", 50_889, "sketch", "imagenet_sketch"),
    "imagenet_v2": TestSet(
        "ImageNet-V2",
        10_000,
        "imagenetv2-matched-frequency-format-val",
        "imagenet_v2/matched-frequency",
    ),
    "imagenet_real": TestSet(
        "ImageNet-ReaL", 50_000, dataset="imagenet2012_real", split="validation"
    ),
    "imagenet_c": TestSet(
        "ImageNet-C", 50_000, "imagenet_c", corruptions=tuple(ALEXNET_ERRORS), whole=True
    ),
    "imagenet_c_bar": TestSet(
        "ImageNet-C-bar", 50_000, "imagenet_c_bar", corruptions=C_BAR, whole=True
    ),
    "ade20k": TestSet("ADE20K", 2_000, dataset="ade20k", split="validation"),
    "coco": TestSet("COCO", 5_000, dataset="coco2017", split="validation"),
}
# Prepared datasets whose images are as networks of 224 pixels take them.
_WHOLE = ("imagenet2012_corrupted",)


@dataclasses.dataclass(frozen=True)
class Part:
    """What is read at once: a test set, or one severity of a corruption.

    Attributes:
      key: names it in records, such as `imagenet_a` or `imagenet_c/fog/3`.
      test_set: that it is of.
      name: `data.name` of a config.
      data_dir: likewise `data.dir`.
      split: likewise `data.eval_split`.
    """

    key: str
    test_set: TestSet
    name: str
    data_dir: str
    split: str

    @property
    def set_name(self) -> str:
        """The test set's key."""
        return self.key.partition("/")[0]


def split_of(dataset: str) -> str | None:
    """The split of a prepared dataset that is a test set; None: it is not known as one."""
    found = {base_name(each.dataset): each.split for each in TEST_SETS.values()}
    found[_WHOLE[0]] = "validation"
    return found.get(base_name(dataset))


def is_whole(dataset: str) -> bool:
    """Whether nothing is to be cut off the images of a prepared dataset."""
    return base_name(dataset) in _WHOLE


def keys_of(name: str) -> list[str]:
    """The keys of the parts that a test set has, wherever it lies."""
    return [
        f"{name}/{corruption}/{severity}"
        for corruption in TEST_SETS[name].corruptions
        for severity in SEVERITIES
    ] or [name]


def parts_of(name: str, data_dir: str | os.PathLike[str] | None) -> list[Part]:
    """Finds the parts of a test set; opens no image.

    Args:
      name: a key of `TEST_SETS`.
      data_dir: as for `sources.open_source`.

    Raises:
      NotThere: it is not prepared, and no archive of it is unpacked.
      InputError: a part of it is missing.
    """
    test_set = TEST_SETS[name]
    root = os.fspath(data_dir) if data_dir is not None else default_data_dir()
    in_bucket = "://" in root
    if not in_bucket:
        root = str(Path(root).expanduser().absolute())
    if test_set.corruptions:
        if in_bucket:
            raise NotThere(f"{test_set.title} must be on a disk: no folders are read from {root}")
        return _corrupted(name, test_set, Path(root))
    if find_prepared(test_set.dataset, root) is not None:
        return [Part(name, test_set, test_set.dataset, root, test_set.split)]
    readable = test_set.folder and not in_bucket
    if readable and (Path(root) / test_set.folder).is_dir():
        return [Part(name, test_set, FOLDER, root, test_set.folder)]
    unpacked = f", or unpack its archive as {root}/{test_set.folder}" if readable else ""
    raise NotThere(
        f"{test_set.title} is not there: prepare it with"
        f" `{prepare_command(test_set.dataset, root)}`{unpacked}"
    )


def _corrupted(name: str, test_set: TestSet, root: Path) -> list[Part]:
    place = root / test_set.folder
    if not place.is_dir():
        raise NotThere(
            f"{test_set.title} is not there: unpack its archives in {place}, which then has a"
            f" folder for each corruption, such as {test_set.corruptions[0]}/1"
        )
    parts = [
        Part(
            f"{name}/{corruption}/{severity}",
            test_set,
            FOLDER,
            str(place / corruption),
            str(severity),
        )
        for corruption in test_set.corruptions
        for severity in SEVERITIES
    ]
    missing = [
        f"{Path(part.data_dir).name}/{part.split}"
        for part in parts
        if not (Path(part.data_dir) / part.split).is_dir()
    ]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise InputError(
            f"{test_set.title} in {place} must have all {len(parts)} folders of corruptions and"
            f" severities, and lacks {len(missing)}: {named}"
        )
    return parts
