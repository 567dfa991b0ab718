"""Writes miniature copies of ADEChallengeData2016, as a folder or as the archive."""

import zipfile

import numpy as np
from data.masks import grey_png, photograph, saved, values

FOLDER = "ADEChallengeData2016"
ARCHIVE = f"{FOLDER}.zip"
SPLITS = {"train": ("training", "train"), "validation": ("validation", "val")}


def path(kind, split, number):
    """Where a file is in the archive; `kind` is images or annotations."""
    folder, called = SPLITS[split]
    ending = {"images": "jpg", "annotations": "png"}[kind]
    return f"{FOLDER}/{kind}/{folder}/ADE_{called}_{number:08d}.{ending}"


def files(train=6, validation=3, seed=0, scenes=True):
    """Contents by path; of several sizes, the second image of each split is grey."""
    rng = np.random.default_rng(seed)
    found = {}
    lines = []
    for split, count in (("train", train), ("validation", validation)):
        for number in range(1, count + 1):
            height, width = (int(side) for side in rng.integers(20, 60, 2))
            image = photograph(rng, height, width)
            image = image.convert("L") if number == 2 else image
            found[path("images", split, number)] = saved(image, "JPEG")
            labels = values(rng, height, width, 150)
            found[path("annotations", split, number)] = grey_png(labels)
            lines.append(f"ADE_{SPLITS[split][1]}_{number:08d} scene_{number}")
    if scenes:
        found[f"{FOLDER}/sceneCategories.txt"] = "\n".join(lines).encode() + b"\n"
    return found


def write_archive(folder, contents):
    """Writes the archive, with entries of folders as the real one has."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(f"{FOLDER}/images")
        for name, content in contents.items():
            archive.writestr(name, content)


def write_folder(folder, contents):
    """Writes what is in the archive."""
    for name, content in contents.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
