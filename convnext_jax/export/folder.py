"""The folder that an exported model is: what it is, its files, and how to run them."""

import datetime
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext_jax.errors import InputError, RunError

_SCRIPT = '''\
"""Runs {file} on images, with {needs}, NumPy and Pillow alone: python {script} photo.jpg"""

import json, pathlib, sys

{imports}
from PIL import Image, ImageOps

here = pathlib.Path(__file__).parent
about = json.loads((here / "model.json").read_text())
{load}
feed, size = about["preprocessing"], about["input"]["size"]
for path in sys.argv[1:]:
    image = Image.open(path)
    image = (ImageOps.exif_transpose(image) if feed["exif"] else image).convert("RGB")
{resize}
    x = np.asarray(image, np.float32)[None]
    if about["input"]["pixels"] == "normalised":
        x = (x / 255 - np.float32(feed["mean"])) / np.float32(feed["std"])
{call}
{show}
'''
_RUNTIMES = {
    "stablehlo": {
        "needs": "JAX",
        "imports": "import jax, numpy as np",
        "load": """\
program = (here / "model.stablehlo").read_bytes()
model = jax.export.deserialize(bytearray(program))""",
        "call": "    logits = np.asarray(model.call(x))[0]",
    },
    "onnx": {
        "needs": "ONNX Runtime",
        "imports": "import numpy as np, onnxruntime",
        "load": 'model = onnxruntime.InferenceSession(here / "model.onnx")',
        "call": """\
    logits = model.run(None, {"images": x.transpose(0, 3, 1, 2)})[0][0]""",
    },
}
# Of a classifier; a model that segments is shown a whole image, squashed.
_CROP = """\
    side = int(size / feed["crop_fraction"])
    width, height = image.size
    if feed["crop_mode"] == "squash":
        width = height = side
    elif width <= height:
        width, height = side, int(side * height / width)
    else:
        width, height = int(side * width / height), side
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling[feed["interpolation"].upper()])
    image = image.crop((left, top, left + size, top + size))"""
_CLASSES = """\
    names = about["class_names"] or range(len(logits))
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    for label in np.argsort(-probabilities)[:5]:
        print(f"{path}  {probabilities[label]:.2%}  {names[label]}")"""
_EMBEDDING = """\
    print(f"{path}  embedding of {len(logits)} numbers, the first {logits[:4]}")"""
_SQUASH = """\
    image = image.resize((size, size), Image.Resampling.BILINEAR)"""
_AREAS = """\
    names = about["class_names"] or range(logits.shape[{axis}])
    labels, counts = np.unique(logits.argmax({axis}), return_counts=True)
    for label, count in zip(labels, counts):
        print(f"{{path}}  {{count / counts.sum():.2%}}  {{names[label]}}")"""


def script(runtime: str, num_classes: int, segments: bool) -> str:
    """A script that runs an exported model on images, in `onnx` or `stablehlo`."""
    areas = _AREAS.format(axis={"onnx": 0, "stablehlo": -1}[runtime])
    resize, show = (
        (_SQUASH, areas) if segments else (_CROP, _CLASSES if num_classes else _EMBEDDING)
    )
    return _SCRIPT.format(
        file=f"model.{runtime}",
        script=f"run_{runtime}.py",
        resize=resize,
        show=show,
        **_RUNTIMES[runtime],
    )


def require_free(folder: Path) -> None:
    """Raises InputError unless a folder can be made there, or is there and empty."""
    try:
        # A volume that was just made has `lost+found`.
        if folder.exists() and (
            not folder.is_dir() or any(entry.name != "lost+found" for entry in folder.iterdir())
        ):
            raise InputError(f"`output` (={folder}) must be a new or an empty folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        probe = _part(folder)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(
            f"`output` (={folder}) must be a folder that can be written: {error}"
        ) from (error)


def write_folder(folder: Path, files: Mapping[str, bytes | str | dict[str, Any]]) -> None:
    """Makes a folder of files at once: bytes, texts, and what is written as JSON.

    Into one that is there, which may be a mounted volume, they are moved one by one, the last of
    them last.

    Raises:
      RunError: it cannot be written; nothing of it is left.
    """
    part = _part(folder)
    try:
        part.mkdir(parents=True)
        for name, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content, indent=2) + "\n"
            data = content.encode() if isinstance(content, str) else content
            (part / name).write_bytes(data)
        if not folder.exists():
            part.replace(folder)
            return
        for name in files:
            (part / name).replace(folder / name)
    except OSError as error:
        if part.parent == folder:
            for name in files:
                (folder / name).unlink(missing_ok=True)
        raise RunError(f"writing {folder} failed: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def today() -> str:
    """The date, as model.json says it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _part(folder: Path) -> Path:
    name = f".{folder.name}.{os.getpid()}.part"
    # The folder around one that is there may be another file system, or may not be written.
    return folder / name if folder.is_dir() else folder.with_name(name)
