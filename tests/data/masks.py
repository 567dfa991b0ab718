"""Images with masks to test with, and readings of them that share nothing with the package."""

import io

import numpy as np
from PIL import Image

# Orientation in EXIF -> what shows an array as stored upright, by the definition of the tag: where
# its row 0 and column 0 are in the scene.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def saved(image, kind="PNG", **options):
    """The contents of an image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_png(values):
    """An annotation as a grey PNG of 8 bits."""
    return saved(Image.fromarray(np.asarray(values, np.uint8)))


def palette_png(values, palette=None):
    """An annotation as a palette PNG, with colours that have nothing to do with the indices."""
    image = Image.fromarray(np.asarray(values, np.uint8)).convert("P")
    image.putdata(np.asarray(values, np.uint8).ravel().tolist())
    image.putpalette([(7 * i + 90) % 256 for i in range(768)] if palette is None else palette)
    return saved(image)


def photograph(rng, height, width):
    """Smooth colours, which a JPEG hardly changes."""
    pixels = rng.integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def values(rng, height, width, highest, lowest=0):
    """Random values of an annotation, in blocks."""
    blocks = rng.integers(lowest, highest + 1, (height // 4 + 1, width // 4 + 1), np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)[:height, :width]


def write_folder(root, count, *, split="train", classes=("sky", "road", "tree"), highest=2, seed=0):
    """Writes pairs of files, of several sizes; returns the values of their annotations by name."""
    rng = np.random.default_rng(seed)
    written = {}
    for i in range(count):
        height, width = 20 + 3 * i % 17, 24 + 5 * i % 13
        name = f"{'ab'[i % 2]}/{i:03d}"
        image = photograph(rng, height, width)
        written[name] = values(rng, height, width, highest)
        write(root / "images" / split / f"{name}.{'jpg' if i % 3 else 'png'}", image)
        write(root / "annotations" / split / f"{name}.png", Image.fromarray(written[name]))
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return written


def write(path, content):
    """Writes an image, or bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save(path) if isinstance(content, Image.Image) else path.write_bytes(content)
