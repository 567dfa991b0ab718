"""Writes miniature ILSVRC2012 archives, laid out as the real ones, and prepares them.

TFDS's builder gives the i-th validation image, by sorted name, the i-th label of the real list, so
the classes of the miniature are those of the first validation images. Each class has a colour, so a
small network can learn it.
"""

import colorsys
import dataclasses
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"
VALIDATION_ARCHIVE = "ILSVRC2012_img_val.tar"
# TFDS re-encodes the real data set's one PNG and 22 CMYK files by their names; this is one of them.
LISTED_CMYK = "n01739381_1309.JPEG"


@dataclasses.dataclass(frozen=True)
class Ilsvrc:
    """What the archives hold: label (0..999) by file name, and the files of other kinds."""

    folder: Path
    train: dict[str, int]
    validation: dict[str, int]
    kinds: dict[str, str]  # file name -> "cmyk", "png" or "grey"; all others are RGB JPEGs


def write_ilsvrc(
    folder: Path, *, train_per_class: int = 4, validation: int = 40, seed: int = 0
) -> Ilsvrc:
    """Writes both archives into `folder`.

    Args:
      folder: created if need be.
      train_per_class: train images of each class that occurs among the validation images.
      validation: validation images.
      seed: of sizes and noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lists = Path(tfds.core.tfds_path("datasets/imagenet2012"))
    ids = (lists / "labels.txt").read_text().split()
    validation_ids = (lists / "validation_labels.txt").read_text().split()[:validation]
    classes = sorted(set(validation_ids) | {LISTED_CMYK.split("_")[0]})

    train: dict[str, int] = {}
    kinds: dict[str, str] = {}
    # One of each kind that the real archives also have, unknown to TFDS by name, hence left to us.
    special = dict(zip(classes, ("cmyk", "png", "grey"), strict=False))
    with tarfile.open(folder / TRAIN_ARCHIVE, "w") as archive:
        for wordnet_id in classes:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_archive:
                for i in range(train_per_class):
                    name = f"{wordnet_id}_{i + 1}.JPEG"
                    kind = special.get(wordnet_id, "rgb") if i == 0 else "rgb"
                    if i == 1 and LISTED_CMYK.startswith(wordnet_id):
                        name, kind = LISTED_CMYK, "cmyk"
                    if kind != "rgb":
                        kinds[name] = kind
                    train[name] = ids.index(wordnet_id)
                    _add(class_archive, name, _image(rng, train[name], kind))
            _add(archive, f"{wordnet_id}.tar", inner.getvalue())

    labels: dict[str, int] = {}
    with tarfile.open(folder / VALIDATION_ARCHIVE, "w") as archive:
        for i, wordnet_id in enumerate(validation_ids):
            name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            kind = "grey" if i == 0 else "rgb"
            if kind != "rgb":
                kinds[name] = kind
            labels[name] = ids.index(wordnet_id)
            _add(archive, name, _image(rng, labels[name], kind))
    return Ilsvrc(folder, train, labels, kinds)


def prepare(*arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own."""
    command = [sys.executable, "-m", "convnext_jax.data.prepare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def prepared_imagenet(folder: Path, **options: int) -> tuple[Path, Ilsvrc]:
    """Writes archives (`options` as for `write_ilsvrc`), prepares them, returns the data_dir."""
    archives = write_ilsvrc(folder / "downloads", **options)
    data_dir = folder / "tfds"
    done = prepare("imagenet2012", f"--manual_dir={archives.folder}", f"--data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    return data_dir, archives


def encode(image: Image.Image, kind: str) -> bytes:
    """Encodes as a JPEG of 1, 3 or 4 channels ("grey", "rgb", "cmyk") or as a PNG."""
    mode = {"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB")
    file = io.BytesIO()
    image.convert(mode).save(file, "PNG" if kind == "png" else "JPEG", quality=90)
    return file.getvalue()


def _image(rng: np.random.Generator, label: int, kind: str) -> bytes:
    height, width = rng.integers(40, 120, size=2)
    colour = 255 * np.array(colorsys.hsv_to_rgb(label * 0.618 % 1, 0.8, 0.7))
    noise = rng.normal(0, 20, (height // 4 + 1, width // 4 + 1, 3))
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
    return encode(Image.fromarray(pixels).resize((int(width), int(height))), kind)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
