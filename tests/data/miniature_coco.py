"""Writes miniature copies of COCO 2017, as folders or as the archives, and COCO-style files."""

import json
import zipfile

import numpy as np
from data.masks import photograph, saved
from PIL import Image

# Some of COCO's categories with their numbers; 12 and 26 are among those that it does not use.
CATEGORIES = [(1, "person"), (2, "bicycle"), (44, "bottle"), (90, "toothbrush")]
FOLDERS = {"train": "train2017", "validation": "val2017"}
ARCHIVES = {
    "train2017": "train2017.zip",
    "val2017": "val2017.zip",
    "annotations": "annotations_trainval2017.zip",
}


def polygon(left, top, width, height, points=8):
    """An ellipse that fills a box, as COCO's list of numbers."""
    angles = np.arange(points) * 2 * np.pi / points
    x = left + width * (0.5 + 0.5 * np.cos(angles))
    y = top + height * (0.5 + 0.5 * np.sin(angles))
    return np.round(np.stack([x, y], 1).ravel(), 2).tolist()


def counts_of(pixels):
    """Run lengths of a bitmap in COCO's order, down the columns, beginning with zeros."""
    flat = np.asarray(pixels, bool).T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def annotation(number, image, category, box, *, crowd=0, area=None, segmentation=None):
    """An annotation of an ellipse, or of a crowd that is a full box."""
    left, top, width, height = box
    if segmentation is None and crowd:
        pixels = np.zeros((image["height"], image["width"]), bool)
        pixels[int(top) : int(top + height), int(left) : int(left + width)] = True
        segmentation = {"size": list(pixels.shape), "counts": counts_of(pixels)}
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": category,
        "bbox": [round(float(side), 2) for side in box],
        "area": round(0.7 * width * height, 2) if area is None else area,
        "iscrowd": crowd,
        "segmentation": [polygon(*box)] if segmentation is None else segmentation,
    }


def images_and_annotations(rng, count, first_id, categories=CATEGORIES):
    """Images by name, and rows of COCO's file.

    The third is grey, the fourth CMYK, the fifth has an EXIF orientation; the second has no object,
    the sixth only a crowd. They are in no order of their numbers.
    """
    files, images, annotations = {}, [], []
    for place in range(count):
        number = first_id + (7 * place) % count
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        name = f"{number:012d}.jpg"
        picture = photograph(rng, height, width)
        kinds = {2: "L", 3: "CMYK"}
        options = {}
        if place == 4:
            exif = Image.Exif()
            exif[0x0112] = 6
            options = {"exif": exif}
        files[name] = saved(picture.convert(kinds.get(place, "RGB")), "JPEG", **options)
        image = {"id": number, "file_name": name, "height": height, "width": width}
        images.append(image)
        for i in range(0 if place == 1 else 1 if place == 5 else int(rng.integers(1, 6))):
            left, top = rng.uniform(0, width - 12), rng.uniform(0, height - 12)
            box = [left, top, rng.uniform(8, width - left), rng.uniform(8, height - top)]
            annotations.append(
                annotation(
                    100 * number + i,
                    image,
                    int(rng.choice([number for number, _ in categories])),
                    box,
                    crowd=int(place == 5 or (place == 0 and i == 0)),
                )
            )
    order = rng.permutation(len(annotations))
    return files, images, [annotations[i] for i in order]


def coco_file(images, annotations, categories):
    """The contents of a file of annotations."""
    return {
        "info": {"year": 2017},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": name, "supercategory": "x"} for n, name in categories],
    }


def contents(categories, train=8, validation=4, seed=0):
    """Contents of the three archives by path, with COCO's whole list of categories."""
    rng = np.random.default_rng(seed)
    found = {}
    for split, count, first in (("train", train, 1000), ("validation", validation, 500)):
        files, images, annotations = images_and_annotations(rng, count, first)
        found |= {f"{FOLDERS[split]}/{name}": content for name, content in files.items()}
        text = json.dumps(coco_file(images, annotations, categories))
        found[f"annotations/instances_{FOLDERS[split]}.json"] = text.encode()
    return found


def write_archives(folder, files):
    """Writes the archives, with entries of folders as the real ones have."""
    folder.mkdir(parents=True, exist_ok=True)
    for inside, archive_name in ARCHIVES.items():
        members = {name: c for name, c in files.items() if name.startswith(f"{inside}/")}
        if members:
            with zipfile.ZipFile(folder / archive_name, "w") as archive:
                archive.mkdir(f"{inside}/")
                for name, content in members.items():
                    archive.writestr(name, content)


def write_folders(folder, files):
    """Writes what is in the archives."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
