"""ImageNet-22K as a TFDS dataset, from the folders or tar files that people have of it.

The classes are those that are found, sorted by WordNet id: 21,841 in the release of fall 2011,
19,167 in that of winter 2021. They are fixed when the dataset is prepared and stored with it, so
reading needs none of the original files.
"""

import contextlib
import dataclasses
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from convnext_jax.data.decode import one_line
from convnext_jax.errors import InputError
from convnext_jax.progress import progress_bar

NAME = "imagenet22k"
# What a manual_dir may hold, beside the classes themselves.
_FOLDERS = ("fall11_whole", "winter21_whole")
_ARCHIVES = tuple(f"{name}.tar{ending}" for name in _FOLDERS for ending in ("", ".gz"))
_LAYOUTS = (
    f"a folder (n01440764) or a tar file (n01440764.tar) for each class, or {', '.join(_FOLDERS)}"
    f" with these, or one of {', '.join(_ARCHIVES)}"
)
# Images to leave out, `n02487347/n02487347_1956.JPEG` a line.
SKIP_FILE = "skip.txt"
# After so many images that cannot be used, preparing ends; with fewer, it reads on and names all.
_MOST_UNUSABLE = 20
_WORDNET_ID = re.compile(r"n\d{8}")
_READ_SIZE = 1 << 18  # bytes; tarfile's own 10 kB make many small reads


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as it was found: class, file name without folders, encoded bytes."""

    wordnet_id: str
    file_name: str
    content: bytes

    @property
    def key(self) -> str:
        """What messages and the skip file call it; unique in the dataset."""
        return f"{self.wordnet_id}/{self.file_name}"


class Imagenet22k(tfds.core.GeneratorBasedBuilder):
    """Images with their bytes as found, never encoded again; one split, `train`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""\
    manual_dir should hold {_LAYOUTS}. Get them from https://image-net.org/download-images (an
    account is needed).
    """

    def _info(self) -> tfds.core.DatasetInfo:
        # Not `dataset_info_from_configs`: that looks for metadata files beside this module.
        return tfds.core.DatasetInfo(
            builder=self,
            description="All of ImageNet, with a class for each WordNet id.",
            homepage="https://image-net.org/",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    # Its names come with the files, in `_split_generators`.
                    "label": tfds.features.ClassLabel(),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        manual_dir = epath.Path(dl_manager.manual_dir)
        pictures = find(manual_dir)
        features: Any = self.info.features
        features["label"].names = pictures.class_names()
        return {"train": self._generate_examples(pictures, manual_dir)}

    def _generate_examples(
        self, pictures: "ClassFiles | BigArchive", manual_dir: epath.Path
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        skipped = manual_dir / SKIP_FILE
        skip = set(skipped.read_text().split()) if skipped.exists() else set()
        unusable = []
        for picture in pictures:
            if picture.key in skip:
                skip.remove(picture.key)
                continue
            reason = _reason_against(picture.content)
            if reason is not None:
                unusable.append(f"{picture.key} ({reason})")
                if len(unusable) == _MOST_UNUSABLE:
                    break
                continue
            yield (
                picture.key,
                {
                    "image": picture.content,
                    "label": picture.wordnet_id,
                    "file_name": picture.file_name,
                },
            )
        if unusable:
            raise InputError(
                f"every file of a class in {manual_dir} must be an image that can be decoded;"
                f" delete these, or list them in {skipped}, one a line: {', '.join(unusable)}"
            )
        if skip:
            raise InputError(
                f"{skipped} must list images that are there, such as"
                f" n01440764/n01440764_10026.JPEG; there is no {', '.join(sorted(skip))}"
            )


def find(manual_dir: epath.PathLike | None) -> "ClassFiles | BigArchive":
    """Finds the images below `manual_dir`; opens no image, and no archive of archives.

    Raises:
      InputError: there is no such directory, or none or several of the layouts in it; a class is
        there twice, or empty.
    """
    directory = epath.Path(manual_dir) if manual_dir is not None else None
    if directory is None or not directory.is_dir():
        raise InputError(f"`--manual_dir` (={manual_dir}) must be a directory that has {_LAYOUTS}")
    places = [directory, *(directory / name for name in _FOLDERS)]
    found: list[ClassFiles | BigArchive] = [
        files for files in map(ClassFiles, places) if files.paths
    ]
    archives = [directory / name for name in _ARCHIVES]
    found += [BigArchive(path) for path in archives if path.exists()]
    if len(found) != 1:
        there = f"has {' and '.join(map(str, found))}" if found else "has none of these"
        raise InputError(
            f"`--manual_dir` must be a directory that has {_LAYOUTS}; {directory} {there}"
        )
    if isinstance(found[0], ClassFiles):
        found[0].check()
    return found[0]


class ClassFiles:
    """A folder or a tar file for each class, side by side in a directory."""

    def __init__(self, directory: epath.Path):
        """Lists the directory, which need not exist; what is not named like a class is left out."""
        entries = sorted(directory.iterdir()) if directory.is_dir() else []
        self.directory = directory
        self.paths = [path for path in entries if _WORDNET_ID.fullmatch(_class_of(path.name))]

    def check(self) -> None:
        """Raises InputError if a class is there as a folder and as a tar file, or is empty."""
        folders: dict[str, epath.Path] = {}
        for path in self.paths:
            name = _class_of(path.name)
            if name in folders:
                raise InputError(
                    f"class {name} must be a folder or a tar file, and {self.directory} has both"
                    f" {folders[name].name} and {path.name}"
                )
            folders[name] = path
        for path in self.paths:
            if path.is_dir():
                if not any(_visible(entry.name) for entry in path.iterdir()):
                    raise InputError(f"class folder {path} must have images, and is empty")
                continue
            with _readable(path), path.open("rb") as file:
                _check_not_empty(file, str(path))

    def class_names(self) -> list[str]:
        """The WordNet ids, sorted."""
        return [_class_of(path.name) for path in self.paths]

    def __iter__(self) -> Iterator[Picture]:
        """Reads one image after another."""
        for path in self.paths:
            name = _class_of(path.name)
            if not path.is_dir():
                with _readable(path), path.open("rb") as file:
                    yield from _pictures(file, name)
                continue
            for entry in sorted(path.iterdir()):
                if entry.is_dir():
                    raise InputError(f"class folder {path} must have images only, not {entry.name}")
                if _visible(entry.name):
                    yield Picture(name, entry.name, entry.read_bytes())

    def __str__(self) -> str:
        """Names it in messages."""
        return f"{len(self.paths)} class(es) in {self.directory}"


class BigArchive:
    """The whole dataset as one tar file, compressed or not, of a tar file for each class.

    It is read twice from front to back, once for the names of the classes; only the headers, where
    it is not compressed.
    """

    def __init__(self, path: epath.Path):
        """Opens nothing."""
        self.path = path

    def class_names(self) -> list[str]:
        """The WordNet ids, sorted.

        Raises:
          InputError: the archive is damaged, or has a class twice, an empty one or none.
        """
        names = set()
        # A terabyte, of which nothing is written yet.
        bar = progress_bar("looking for classes", self.path.stat().length, "bytes")
        with _readable(self.path), bar:
            for name, file in self._classes(bar):
                if name in names:
                    raise InputError(f"{self.path} must have each class once, and has {name} twice")
                names.add(name)
                _check_not_empty(file, f"{name}.tar in {self.path}")
        if not names:
            raise InputError(
                f"{self.path} must have a tar file for each class, such as n01440764.tar, and has"
                f" none"
            )
        return sorted(names)

    def __iter__(self) -> Iterator[Picture]:
        """Reads one image after another."""
        with _readable(self.path):
            for name, file in self._classes():
                with _readable(f"{name}.tar in {self.path}"):
                    yield from _pictures(file, name)

    def __str__(self) -> str:
        """Names it in messages."""
        return str(self.path)

    def _classes(self, bar: Any = None) -> Iterator[tuple[str, IO[bytes]]]:
        # A stream cannot go back, but neither can it skip; so only what is compressed is one.
        mode: Any = "r|gz" if self.path.suffix == ".gz" else "r:"
        with (
            self.path.open("rb") as file,
            tarfile.open(fileobj=file, mode=mode, bufsize=_READ_SIZE) as archive,
        ):
            for member in archive:
                if bar is not None:
                    bar.update(file.tell() - bar.n)
                base = member.name.rpartition("/")[2]
                name = _class_of(base)
                content = archive.extractfile(member)
                if content is not None and base != name and _WORDNET_ID.fullmatch(name):
                    yield name, content


def _class_of(file_name: str) -> str:
    return file_name.removesuffix(".tar")


def _visible(file_name: str) -> bool:
    # Such as .DS_Store, and the ._ files that tar writes on a Mac.
    return not file_name.startswith(".")


def _members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of the files in a tar file, read from front to back."""
    with tarfile.open(fileobj=file, mode="r|", bufsize=_READ_SIZE) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            content = archive.extractfile(member)
            if content is not None and _visible(name):
                yield name, content


def _pictures(file: IO[bytes], wordnet_id: str) -> Iterator[Picture]:
    for name, content in _members(file):
        yield Picture(wordnet_id, name, content.read())


def _check_not_empty(file: IO[bytes], name: str) -> None:
    if next(_members(file), None) is None:
        raise InputError(f"class archive {name} must have images, and is empty")


def _reason_against(content: bytes) -> str | None:
    """Why an image cannot be used, or None if it can be decoded, in whatever colours it has."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            # At an eighth of the size, which reads all of a JPEG's data in two thirds of the time.
            image.draft(None, (1, 1))
            image.load()
    except Exception as error:  # PIL's readers raise nearly anything on damaged data.
        return one_line(error)
    return None


@contextlib.contextmanager
def _readable(path: epath.Path | str) -> Iterator[None]:
    """Turns what reading a damaged archive raises into a sentence with its name."""
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} must be a complete tar file: {one_line(error)}") from error
