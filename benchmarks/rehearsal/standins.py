"""Stand-ins for large datasets: the real numbers of records, shards, classes and files, and images
of a few hundred bytes.

Records and files repeat: all shards of a dataset of one length are hard links to a few, all images
of a class to one. What a run does with them - files that it opens, indices that it reads, lists
that it keeps - is what the real ones would have it do; what it reads from the disk is not.
"""

import dataclasses
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

# Different contents of shards of one length; together they have every class.
_BODIES = 32
_DONE = "written"


@dataclasses.dataclass(frozen=True)
class Records:
    """A dataset as TFDS stores it.

    Attributes:
      name: of the dataset.
      version: likewise.
      classes: how many.
      splits: number of records and of shards, by split.
    """

    name: str
    version: str
    classes: int
    splits: dict[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of images.

    Attributes:
      name: of its root.
      classes: how many.
      splits: number of images, by split.
    """

    name: str
    classes: int
    splits: dict[str, int]


# Shards as TFDS 4.9 cuts them.
IMAGENET_1K = Records(
    "imagenet2012", "5.1.0", 1000, {"train": (1_281_167, 1024), "validation": (50_000, 64)}
)
IMAGENET_22K = Records("imagenet22k", "1.0.0", 21_841, {"train": (14_197_122, 2048)})
FOLDER = Folder("folder", 1000, {"train": 1_281_167, "val": 50_000})


def write(dataset: Records | Folder, root: Path) -> None:
    """Writes a dataset below `root`, unless it is there: `root/NAME`.

    Raises:
      RuntimeError: part of it is there.
    """
    place = root / dataset.name
    if (place / _DONE).exists():
        return
    if place.exists():
        raise RuntimeError(f"{place} must be complete or not there; delete it")
    if isinstance(dataset, Records):
        _write_records(dataset, place / dataset.version)
    else:
        _write_folder(dataset, place)
    (place / _DONE).touch()


def _write_records(dataset: Records, place: Path) -> None:
    place.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=_class_names(dataset.classes)),
            "file_name": tfds.features.Text(),
        }
    )
    rng = np.random.default_rng(0)
    infos = []
    for split, (count, shards) in dataset.splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=place,
            dataset_name=dataset.name,
            split=split,
            filetype_suffix="array_record",
        )
        lengths = np.diff(np.arange(shards + 1) * count // shards).tolist()
        bodies: dict[int, list[Path]] = {}
        for shard, length in enumerate(lengths):
            path = Path(template.sharded_filepath(shard_index=shard, num_shards=shards))
            same = bodies.setdefault(length, [])
            if len(same) < _BODIES:
                _write_shard(path, length, features, dataset.classes, rng)
                same.append(path)
            else:
                os.link(same[shard % _BODIES], path)
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=count * len(_JPEGS[0]),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=place,
        features=features,
        split_infos=infos,
        supervised_keys=("image", "label"),
        check_data=False,  # by TensorFlow
    )


def _write_shard(
    path: Path, length: int, features: Any, classes: int, rng: np.random.Generator
) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # as TFDS's
    for label in rng.integers(classes, size=length).tolist():
        example = {
            "image": _JPEGS[label % len(_JPEGS)],
            "label": label,
            "file_name": f"n{label:08d}_{label}.JPEG",
        }
        writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()


def _write_folder(dataset: Folder, place: Path) -> None:
    for split, count in dataset.splits.items():
        lengths = np.diff(np.arange(dataset.classes + 1) * count // dataset.classes).tolist()
        for label, (name, length) in enumerate(
            zip(_class_names(dataset.classes), lengths, strict=True)
        ):
            folder = place / split / name
            folder.mkdir(parents=True)
            first = folder / f"{name}_0.JPEG"
            # One to a class: a file of ext4 can have 65,000 links.
            first.write_bytes(_JPEGS[label % len(_JPEGS)])
            for number in range(1, length):
                os.link(first, folder / f"{name}_{number}.JPEG")


def _class_names(classes: int) -> list[str]:
    return [f"n{label:08d}" for label in range(classes)]


def _jpeg(seed: int) -> bytes:
    """A few colours, wide or high, in some 400 bytes."""
    rng = np.random.default_rng(seed)
    size = (64, 48) if seed % 2 else (48, 64)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size)
    target = io.BytesIO()
    image.save(target, "jpeg", quality=20, optimize=True)
    return target.getvalue()


_JPEGS = [_jpeg(seed) for seed in range(16)]
