"""Writes miniature copies of ImageNet-22K in every layout that it is handed around in."""

import io
import tarfile
from pathlib import Path

import numpy as np
from data.ilsvrc import encode
from PIL import Image

CLASSES = ("n01440764", "n02487347", "n15075141")
# Real ones have all of these, and the same file ending.
KINDS = ("rgb", "cmyk", "png", "grey")


def pictures(per_class=4, seed=0):
    """Encoded images by file name, by class."""
    rng = np.random.default_rng(seed)
    return {
        wordnet_id: {
            f"{wordnet_id}_{i + 1}.JPEG": encode(
                Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48)),
                KINDS[i % len(KINDS)],
            )
            for i in range(per_class)
        }
        for wordnet_id in CLASSES
    }


def tar(files):
    """A tar file of the given contents by name."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_folders(folder, classes):
    for wordnet_id, files in classes.items():
        for name, content in files.items():
            write(Path(folder) / wordnet_id / name, content)


def write_tars(folder, classes):
    for wordnet_id, files in classes.items():
        write(Path(folder) / f"{wordnet_id}.tar", tar(files))


def whole(classes, prefix=""):
    """A tar file of a tar file for each class, as they come: the classes in no order."""
    return tar({f"{prefix}{name}.tar": tar(classes[name]) for name in reversed(classes)})
