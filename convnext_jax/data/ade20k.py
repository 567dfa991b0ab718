"""ADE20K as a TFDS dataset: the scene parsing benchmark of 2016, with 150 classes.

It is not the full ADE20K of 2021, which has more images, more classes and other files.
"""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from convnext_jax.data.ade20k_classes import CLASSES
from convnext_jax.data.annotations import Labelling, read_pair
from convnext_jax.data.decode import one_line
from convnext_jax.data.mask_metadata import MaskMetadata
from convnext_jax.errors import InputError

NAME = "ade20k"
_FOLDER = "ADEChallengeData2016"
_ARCHIVE = f"{_FOLDER}.zip"
_URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
# By split: its folders, what its files are called, and how many of them the benchmark has.
_SPLITS = {"train": ("training", "train", 20_210), "validation": ("validation", "val", 2_000)}
_SCENES = "sceneCategories.txt"
# Value 0 is whatever is none of the classes.
_FIRST_LABEL, _IGNORED = 1, 0
_LABELLING = Labelling(len(CLASSES), _FIRST_LABEL, _IGNORED)
# After so many pairs that cannot be used, preparing ends; with fewer, it reads on and names all.
_MOST_UNUSABLE = 20
# Files that a message names.
_NAMED = 3


class Ade20k(tfds.core.GeneratorBasedBuilder):
    """Images and annotations with their bytes as found; splits `train` and `validation`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    manual_dir should hold {_ARCHIVE}, or the folder {_FOLDER} that is in it. Get it from {_URL}.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        # Not `dataset_info_from_configs`: that looks for metadata files beside this module.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes with a label for each pixel: ADE20K's benchmark of 150 classes.",
            homepage="http://sceneparsing.csail.mit.edu/",
            features=tfds.features.FeaturesDict(
                {
                    # A few are grey.
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.LabeledImage(
                        labels=["other", *CLASSES], encoding_format="png"
                    ),
                    "file_name": tfds.features.Text(),
                    "scene": tfds.features.Text(doc="its category; empty where none was given"),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = find(dl_manager.manual_dir)
        metadata = MaskMetadata(_FIRST_LABEL, _IGNORED)
        for split, (_, _, count) in _SPLITS.items():
            found = len(files.names(split))
            if found != count:
                metadata.notes[split] = [
                    f"{found} images were prepared where ADE20K has {count}, so results are not"
                    f" those of the benchmark"
                ]
        return {split: self._generate_examples(files, split, metadata) for split in _SPLITS}

    def _generate_examples(
        self, files: "Files", split: str, metadata: MaskMetadata
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        unusable = []
        for name, image, annotation, scene in files.examples(split):
            try:
                _, labels = read_pair(image, annotation, f"{name}.jpg", f"{name}.png", _LABELLING)
            except InputError as error:
                unusable.append(str(error))
                if len(unusable) == _MOST_UNUSABLE:
                    break
                continue
            metadata.see(split, *labels.shape)
            yield (
                name,
                {
                    "image": image,
                    "label": annotation,
                    "file_name": f"{name}.jpg",
                    "scene": scene,
                },
            )
        if unusable:
            raise InputError(
                f"every image in {files} must be readable, with an annotation of its size that has"
                f" values 0..{len(CLASSES)}; if a new copy is no better, remove these pairs from"
                f" the extracted folder: {'; '.join(unusable)}"
            )
        metadata.store(self.info)


def find(manual_dir: epath.PathLike | None) -> "Files":
    """Finds the archive or the folder, and in it the pairs of images and annotations.

    Raises:
      InputError: there is neither; or a half of a pair or a whole split is missing.
    """
    directory = epath.Path(manual_dir) if manual_dir is not None else None
    if directory is not None:
        if (directory / _ARCHIVE).exists():  # before the folder: it has checksums
            return Zipped(directory / _ARCHIVE)
        for place in (directory / _FOLDER, directory):
            if (place / "images").is_dir() or (place / "annotations").is_dir():
                return Files(place)
    raise InputError(
        f"`--manual_dir` (={manual_dir}) must be a directory that has {_ARCHIVE} or the folder"
        f" {_FOLDER} that is in it; download it from {_URL}"
    )


class Files:
    """The extracted folder."""

    def __init__(self, path: epath.Path):
        """Lists its files.

        Raises:
          InputError: as `find`.
        """
        self.path = path
        self._names = {split: self._paired(split) for split in _SPLITS}

    def names(self, split: str) -> list[str]:
        """Names of a split's files without their endings, sorted."""
        return self._names[split]

    def examples(self, split: str) -> Iterator[tuple[str, bytes, bytes, str]]:
        """Name, contents of image and annotation, and category of the scene, if it has one."""
        folder = _SPLITS[split][0]
        with self._reader() as read:
            lines = read(_SCENES).decode().splitlines() if self._exists(_SCENES) else []
            scenes = dict(line.split(maxsplit=1) for line in lines if line.strip())
            for name in self.names(split):
                image = read(f"images/{folder}/{name}.jpg")
                annotation = read(f"annotations/{folder}/{name}.png")
                yield name, image, annotation, scenes.get(name, "")

    def __str__(self) -> str:
        """Names it in messages."""
        return str(self.path)

    def _paired(self, split: str) -> list[str]:
        folder, called, _ = _SPLITS[split]
        of_kind = {}
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            pattern = re.compile(rf"(ADE_{called}_\d{{8}})\.{ending}")
            matches = map(pattern.fullmatch, self._listed(f"{kind}/{folder}"))
            of_kind[kind] = {match[1] for match in matches if match}
            if not of_kind[kind]:
                raise InputError(
                    f"{self} must have files {kind}/{folder}/ADE_{called}_00000001.{ending} and so"
                    f" on, and has none"
                )
        for kind, other in (("images", "annotations"), ("annotations", "images")):
            alone = sorted(of_kind[kind] - of_kind[other])
            if alone:
                named = ", ".join(alone[:_NAMED]) + (", ..." if len(alone) > _NAMED else "")
                raise InputError(
                    f"each file in {kind}/{folder} of {self} must have one of the same number in"
                    f" {other}/{folder}, and {len(alone)} have none: {named}"
                )
        return sorted(of_kind["images"])

    def _listed(self, folder: str) -> list[str]:
        path = self.path / folder
        return [entry.name for entry in path.iterdir()] if path.is_dir() else []

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[str], bytes]]:
        yield lambda name: (self.path / name).read_bytes()


class Zipped(Files):
    """The archive as downloaded."""

    def __init__(self, path: epath.Path):
        """Lists its files, as `Files`."""
        with _readable(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            self._members = {name.removeprefix(f"{_FOLDER}/"): name for name in archive.namelist()}
        super().__init__(path)

    def _listed(self, folder: str) -> list[str]:
        split = (name.rpartition("/") for name in self._members)
        return [base for parent, _, base in split if parent == folder]

    def _exists(self, name: str) -> bool:
        return name in self._members

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[str], bytes]]:
        with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:

            def read(name: str) -> bytes:
                with _readable(self.path):
                    return archive.read(self._members[name])

            yield read


@contextlib.contextmanager
def _readable(path: epath.Path) -> Iterator[None]:
    """Turns what reading a damaged archive raises into a sentence with its name."""
    try:
        yield
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} must be a complete zip file: {one_line(error)}") from error
