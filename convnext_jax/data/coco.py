"""COCO 2017 as a TFDS dataset: boxes and masks of objects of 80 classes.

TFDS's own `coco/2017` has boxes, and no masks.
"""

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from convnext_jax.data.coco_classes import CATEGORIES
from convnext_jax.data.coco_json import CocoFile, drawn, read_coco, written
from convnext_jax.data.decode import one_line
from convnext_jax.data.object_metadata import ObjectMetadata
from convnext_jax.errors import InputError

NAME = "coco2017"
_URL = "https://cocodataset.org/#download"
_ANNOTATIONS = "annotations"
_ANNOTATIONS_ARCHIVE = "annotations_trainval2017.zip"
# By split: the folder of its images, by whose name files are called, and how many there are.
_SPLITS = {"train": ("train2017", 118_287), "validation": ("val2017", 5_000)}
# After so many images that cannot be used, preparing ends; with fewer, it reads on and names all.
_MOST_UNUSABLE = 20


class Coco2017(tfds.core.GeneratorBasedBuilder):
    """Images with their bytes as found, in the order of COCO's files; `train` and `validation`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    manual_dir should hold {_ANNOTATIONS_ARCHIVE}, train2017.zip and val2017.zip, or the folders
    annotations, train2017 and val2017 that are in them. Get them from {_URL}.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        # Not `dataset_info_from_configs`: that looks for metadata files beside this module.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Objects of 80 classes with boxes and masks: COCO 2017.",
            homepage="https://cocodataset.org",
            features=tfds.features.FeaturesDict(
                {
                    # Some are grey, and a few CMYK.
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "file_name": tfds.features.Text(),
                    "image_id": tfds.features.Scalar(np.int64),
                    "height": tfds.features.Scalar(np.int32),
                    "width": tfds.features.Scalar(np.int32),
                    # Not features of their own: TFDS would round the numbers to float32.
                    "objects": tfds.features.Text(
                        doc="JSON: of each its box (left, top, width, height, pixels), label,"
                        " whether it is a crowd, area, and compressed RLE"
                    ),
                }
            ),
            # So that what is stored beside the records is in their order.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = find(dl_manager.manual_dir)
        metadata = ObjectMetadata()
        splits = [split for split in _SPLITS if files.has_images(split)]
        for split in _SPLITS.keys() - splits:
            metadata.notes[splits[0]] = [
                f"there is no split `{split}`, as {files} has no {_SPLITS[split][0]}"
            ]
        # All of it before the first image is written, which takes most of an hour.
        found = {split: files.annotations(split) for split in splits}
        for split in splits:
            files.require_images(split, found[split].file_names)
        return {
            split: self._generate_examples(files, found[split], split, metadata) for split in splits
        }

    def _generate_examples(
        self, files: "Files", found: CocoFile, split: str, metadata: ObjectMetadata
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        expected = _SPLITS[split][1]
        if len(found.image_ids) != expected:
            metadata.notes.setdefault(split, []).append(
                f"{len(found.image_ids)} images were prepared where COCO has {expected}, so results"
                f" are not those of the benchmark"
            )
        unusable = []
        with files.images(split) as images:
            for place, name in enumerate(found.file_names):
                try:
                    example = _example(found, place, images(name))
                except InputError as error:
                    unusable.append(f"{name}: {error}")
                    if len(unusable) == _MOST_UNUSABLE:
                        break
                    continue
                yield place, example
        if unusable:
            raise InputError(
                f"every image in {files} must be readable and as its annotations say; get a new"
                f" copy of what is damaged: {'; '.join(unusable)}"
            )
        metadata.sizes[split], metadata.counts[split] = found.sizes.tolist(), found.counts.tolist()
        metadata.store(self.info)


def _example(found: CocoFile, place: int, content: bytes) -> dict[str, Any]:
    """What is stored of an image."""
    height, width = found.sizes[place].tolist()
    try:
        with Image.open(io.BytesIO(content)) as image:  # reads its head
            size = image.height, image.width
    except Exception as error:  # PIL's readers raise nearly anything on damaged data.
        raise InputError(f"it is no image: {one_line(error)}") from error
    if size != (height, width):
        raise InputError(
            f"it has {size[0]} x {size[1]} pixels (height x width), and its annotations say"
            f" {height} x {width}"
        )
    objects = drawn(found.annotations[place], height, width, found.image_ids[place], place)
    return {
        "image": content,
        "file_name": found.file_names[place],
        "image_id": objects.image_id,
        "height": height,
        "width": width,
        "objects": json.dumps(written(objects)),
    }


def find(manual_dir: epath.PathLike | None) -> "Files":
    """Finds the annotations and the images, in archives or folders.

    Raises:
      InputError: there are no annotations, or no images.
    """
    files = Files(epath.Path(manual_dir)) if manual_dir is not None else None
    if files is None or not files.has_annotations() or not any(map(files.has_images, _SPLITS)):
        raise InputError(
            f"`--manual_dir` (={manual_dir}) must be a directory that has {_ANNOTATIONS_ARCHIVE},"
            f" train2017.zip and val2017.zip, or the folders that are in them (to evaluate only,"
            f" train2017 is not needed); download them from {_URL}"
        )
    return files


class Files:
    """What a user has downloaded: archives, which come first as they have checksums, or folders."""

    def __init__(self, path: epath.Path):
        """Opens nothing."""
        self._path = path

    def has_annotations(self) -> bool:
        """Whether there are annotations."""
        return self._place(_ANNOTATIONS, _ANNOTATIONS_ARCHIVE) is not None

    def has_images(self, split: str) -> bool:
        """Whether there are images of a split."""
        return self._place(_SPLITS[split][0]) is not None

    def annotations(self, split: str) -> CocoFile:
        """Reads the annotations of a split.

        Raises:
          InputError: they cannot be read, or are not of COCO's 80 classes.
        """
        name = f"instances_{_SPLITS[split][0]}.json"
        with self._reading(_ANNOTATIONS, _ANNOTATIONS_ARCHIVE) as read:
            found = read_coco(read(name), f"{name} in {self}")
        if dict(zip(found.category_ids, found.class_names, strict=True)) != CATEGORIES:
            raise InputError(
                f"{name} in {self} must have COCO's {len(CATEGORIES)} categories, with their"
                f" numbers and names, and has {len(found.class_names)}: for data of one's own"
                f" nothing is prepared, `data.name=folder` with `data.annotations` reads it"
            )
        return found

    def require_images(self, split: str, names: Sequence[str]) -> None:
        """Raises InputError unless a split has images of these names; reads none."""
        folder = _SPLITS[split][0]
        place = self._place(folder)
        assert place is not None
        if place.is_dir():
            there = {path.name for path in place.iterdir()}
        else:
            with _whole(place), place.open("rb") as file, zipfile.ZipFile(file) as opened:
                there = {name.removeprefix(f"{folder}/") for name in opened.namelist()}
        missing = sorted(set(names) - there)
        if missing:
            raise InputError(
                f"{place} must have the images that its annotations list, and {len(missing)} of"
                f" {len(names)} are missing: {', '.join(missing[:_MOST_UNUSABLE])}"
            )

    def images(self, split: str) -> contextlib.AbstractContextManager[Any]:
        """A function that reads an image of a split by its name, as long as the block lasts."""
        return self._reading(_SPLITS[split][0])

    def __str__(self) -> str:
        """Names it in messages."""
        return str(self._path)

    def _place(self, folder: str, archive: str = "") -> epath.Path | None:
        places = (self._path / (archive or f"{folder}.zip"), self._path / folder)
        return next((place for place in places if place.exists()), None)

    @contextlib.contextmanager
    def _reading(self, folder: str, archive: str = "") -> Iterator[Any]:
        place = self._place(folder, archive)
        assert place is not None
        if place.is_dir():

            def read(name: str) -> bytes:
                try:
                    return (place / name).read_bytes()
                except OSError as error:
                    raise InputError(f"{place / name} cannot be read: {one_line(error)}") from error

            yield read
            return
        with _whole(place), place.open("rb") as file, zipfile.ZipFile(file) as opened:

            def extract(name: str) -> bytes:
                with _whole(place):
                    return opened.read(f"{folder}/{name}")

            yield extract


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    """Turns what reading a damaged archive raises into a sentence with its name."""
    try:
        yield
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, KeyError) as error:
        raise InputError(f"{path} must be a complete zip file: {one_line(error)}") from error
