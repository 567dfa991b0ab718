"""Miniature versions of ImageNet's test sets, in the layouts that were released, and a model.

Prepared sets come from TFDS's own builders, given archives that are already unpacked; images of the
corrupted sets lie in folders. Labels are chosen by timm's logits, so that results are neither 0
nor 1.
"""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import safetensors.torch
import tensorflow_datasets as tfds
from data.ilsvrc import encode
from oracles import timm, torch
from PIL import Image

from convnext_jax.data.imagenet_subsets import IMAGENET_A, IMAGENET_R
from convnext_jax.data.prepare import prepare as prepare_dataset
from convnext_jax.scoring.corruptions import ALEXNET_ERRORS, C_BAR, SEVERITIES
from convnext_jax.weights.class_names import imagenet_classes

IDS = tuple(imagenet_classes())
SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of each image in turn, which of the likeliest classes is its label: top-1, top-5, neither.
RANKS = (0, 3, 0, 7)
ARGUMENTS = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}


def timm_model(seed: int = 0, name: str = "convnext_tiny") -> torch.nn.Module:
    """A small model of timm's, of whose 1,000 classes many are likely.

    Models of other seeds than 0 are a little like that of 0.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, **ARGUMENTS)
    with torch.no_grad():
        for of, scale in ((0, 0.3), (seed, 0.01)):
            torch.manual_seed(of)
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def save_timm(
    model: torch.nn.Module, folder: Path, size: int = SIZE, name: str = "convnext_tiny"
) -> Path:
    """Saves as timm saves for the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    feeding = {"input_size": [3, size, size], "interpolation": "bicubic", "mean": MEAN, "std": STD}
    feeding |= crop_of(size)
    config = {"architecture": name, "num_classes": model.num_classes, "model_args": ARGUMENTS}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": feeding}))
    return folder


def crop_of(size: int) -> dict:
    """How the authors crop: from 384 pixels on, nothing."""
    large = size >= 384
    return {"crop_pct": 1.0 if large else 0.875, "crop_mode": "squash" if large else "center"}


def logits_of(
    model: torch.nn.Module, images: list[bytes], *, size: int = SIZE, whole: bool = False
) -> np.ndarray:
    """What timm computes of encoded images, [N, 1000]."""
    crop = {"crop_pct": 1.0, "crop_mode": "squash"} if whole else crop_of(size)
    transform = timm.data.create_transform(
        (3, size, size), interpolation="bicubic", mean=MEAN, std=STD, **crop
    )
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    with torch.no_grad():
        return model(torch.stack([transform(image) for image in opened])).numpy()


def encoded(rng: np.random.Generator, count: int, side: int | None = None) -> list[bytes]:
    """JPEGs of smooth noise, of random sizes unless `side` says it."""
    images = []
    for _ in range(count):
        width, height = (side, side) if side else map(int, rng.integers(40, 90, 2))
        pixels = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        images.append(encode(pixels.resize((width, height), Image.Resampling.BICUBIC), "rgb"))
    return images


def top(logits: np.ndarray, labels, k: int, among=range(1000)) -> float:
    """The share of rows of which a label is among the k likeliest of some classes.

    A row has one label or several; one without any, or with one of other classes, does not count.
    """
    columns = np.array(among)
    hits = []
    for row, label in zip(logits, labels, strict=True):
        wanted = set(np.atleast_1d(label).astype(int).tolist())
        if wanted and wanted <= set(columns.tolist()):
            best = columns[np.argsort(-row[columns])[:k]].tolist()
            hits.append(bool(wanted & set(best)))
    return float(np.mean(hits))


class Sets:
    """All sets in a data directory, with what timm computes of each image.

    Attributes:
      data_dir: as the commands take it.
      logits: by test set, [N, 1000]; of corrupted ones by (set, corruption, severity).
      images: likewise, as files have them.
      labels: likewise.
    """

    def __init__(
        self, folder: Path, model: torch.nn.Module, size: int = SIZE, clean: bool = False
    ) -> None:
        """Writes all sets, or (`clean`) ImageNet's validation images alone."""
        self.data_dir = folder / "tfds"
        self.logits: dict = {}
        self.images: dict = {}
        self.labels: dict = {}
        self._size = size
        self._model = model
        self._folder = folder
        self._rng = np.random.default_rng(0)
        # Half of the clean images have a class of ImageNet-A, of which some are in R, too.
        self._write("imagenet", self.data_dir / "val", 8)
        self._write("imagenet", self.data_dir / "val", 8, among=IMAGENET_A)
        if clean:
            return
        self._prepare_subset("imagenet_a", IMAGENET_A, 10)
        self._prepare_subset("imagenet_r", IMAGENET_R, 9)
        root = folder / "v2" / "imagenetv2-matched-frequency-format-val"
        self._write("imagenet_v2", root, 7, lambda label: str(label))
        self._prepare("imagenet_v2/matched-frequency", {"matched-frequency.tar.gz": root.parent})
        self._prepare_real()
        self._write("imagenet_sketch", self.data_dir / "sketch", 6)
        for name, corruptions in (("imagenet_c", ALEXNET_ERRORS), ("imagenet_c_bar", C_BAR)):
            for corruption in corruptions:
                for severity in SEVERITIES:
                    place = self.data_dir / name / corruption / str(severity)
                    self._write((name, corruption, severity), place, 3, side=SIZE)

    def _labelled(self, key, count: int, among=range(1000), side=None) -> list[tuple[bytes, int]]:
        images = encoded(self._rng, count, side)
        logits = logits_of(self._model, images, size=self._size, whole=side is not None)
        columns = np.array(among)
        first = int(self._rng.integers(len(RANKS)))
        order = columns[np.argsort(-logits[:, columns], axis=1)]
        labels = [int(order[i, RANKS[(first + i) % len(RANKS)]]) for i in range(count)]
        before = self.logits.get(key, np.zeros((0, 1000), np.float32))
        self.logits[key] = np.concatenate([before, logits])
        self.images[key] = [*self.images.get(key, []), *images]
        self.labels[key] = [*self.labels.get(key, []), *labels]
        return list(zip(images, labels, strict=True))

    def _write(self, key, root: Path, count: int, folder=IDS.__getitem__, **options) -> None:
        offset = len(self.labels.get(key, []))
        for number, (image, label) in enumerate(self._labelled(key, count, **options), offset):
            path = root / folder(label) / f"{number:04}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)

    def _prepare_subset(self, name: str, among, count: int) -> None:
        root = self._folder / name / name.replace("_", "-")
        self._write(name, root, count, among=among)
        self._prepare(name, {f"{root.name}.tar": root.parent})

    def _prepare_real(self) -> None:
        """ReaL's archive is that of ImageNet's validation images; labels are beside it."""
        folder = self._folder / "real"
        folder.mkdir()
        images = self._labelled("imagenet_real", 8)
        first = [label for _, label in images]
        # Lists of one label, of several and of none; the right one is not always the first.
        lists = [[first[0]], [], [5, first[2], 9], [first[3], 7], [], [first[5]], [first[6]], [1]]
        self.labels["imagenet_real"] = lists
        with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
            for number, (image, _) in enumerate(images, start=1):
                member = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
                member.size = len(image)
                archive.addfile(member, io.BytesIO(image))
        (folder / "real.json").write_text(json.dumps(lists))
        self._prepare("imagenet2012_real", {"real.json": folder / "real.json"}, folder)

    def _prepare(self, name: str, archives: dict[str, Path], manual: Path | None = None) -> None:
        """Prepares as the command does, with downloads that are there already."""

        def given(_, url):
            return next(str(path) for end, path in archives.items() if str(url).endswith(end))

        with contextlib.ExitStack() as stack:
            for method in ("download", "download_and_extract"):
                manager = tfds.download.DownloadManager
                stack.enter_context(mock.patch.object(manager, method, given))
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(redirect(io.StringIO()))
            prepare_dataset(name, str(self.data_dir), manual and str(manual))
