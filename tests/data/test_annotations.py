"""Annotations and the labels that their values become."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from data.masks import UPRIGHT, grey_png, palette_png, photograph, saved, values
from PIL import Image, ImageOps

from convnext_jax.data.annotations import (
    HEADER_BYTES,
    Labelling,
    decode_annotation,
    read_pair,
    size_of,
)
from convnext_jax.data.decode import decode
from convnext_jax.errors import InputError

RNG = np.random.default_rng(0)
VALUES = values(RNG, 30, 41, 255)


def png(rows, bits, kind):
    """A PNG made by hand: rows of packed bytes, `bits` a value, `kind` of colours."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    width = 8 * len(rows[0]) // (bits * {0: 1, 3: 1, 4: 2}[kind])
    content = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if kind == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("encode", [grey_png, palette_png])
def test_values_are_those_that_were_written_and_indices_no_colours(encode, tmp_path):
    content = encode(VALUES)
    (tmp_path / "a.png").write_bytes(content)
    for file in (content, str(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(decode_annotation(file, "given")), VALUES)
    assert size_of(content[:HEADER_BYTES], "given") == VALUES.shape
    if encode is grey_png:
        read = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, VALUES)


def test_palettes_of_few_bits():
    content = png([[0x01, 0x23], [0xFE, 0xDC]], bits=4, kind=3)
    read = np.asarray(decode_annotation(content, "given"))
    np.testing.assert_array_equal(read, [[0, 1, 2, 3], [15, 14, 13, 12]])
    content = png([[0b10110000]], bits=1, kind=3)
    read = np.asarray(decode_annotation(content, "given"))
    np.testing.assert_array_equal(read, [[1, 0, 1, 1, 0, 0, 0, 0]])


BITS = "save its values with 8 bits each, and no transparency"
COLOURS = "save for each pixel the number that its colour stands for"
OTHERS = {
    "16 bits": (saved(Image.fromarray(VALUES.astype(np.uint16))), "kind grey with 16 bits", BITS),
    "colours": (saved(Image.new("RGB", (3, 2))), "kind RGB with 8 bits", COLOURS),
    "RGBA": (saved(Image.new("RGBA", (3, 2))), "kind RGB with transparency", COLOURS),
    "LA": (saved(Image.new("LA", (3, 2))), "kind grey with transparency with 8 bits", BITS),
    "1 bit": (saved(Image.new("1", (8, 2))), "kind grey with 1 bits", BITS),
    "4 bits": (png([[0x12]], bits=4, kind=0), "kind grey with 4 bits", BITS),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_kinds_are_refused_with_what_to_do(case):
    content, kind, remedy = OTHERS[case]
    with pytest.raises(InputError) as caught:
        decode_annotation(content, "a/b.png")
    message = str(caught.value)
    assert message.startswith("the annotation a/b.png is an image of " + kind)
    assert message.endswith(f"must be grey with 8 bits or have a palette; {remedy}")


def test_grey_of_few_bits_is_refused_because_decoders_stretch_it():
    content = OTHERS["4 bits"][0]
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == [[0x11, 0x22]]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "must be a PNG file"),
        (b"\x89PNG\r\n\x1a\n", "must be a PNG file"),
        (saved(Image.new("L", (4, 4)), "JPEG"), "must be a PNG file"),
        (grey_png(VALUES)[:-40], "cannot be decoded: "),
        (grey_png(VALUES)[:60], "cannot be decoded: "),
        ("/nowhere/at/all.png", "cannot be decoded: FileNotFoundError"),
    ],
)
def test_what_cannot_be_decoded_is_named(content, message):
    with pytest.raises(InputError, match=f"^the annotation a.png {message}") as caught:
        decode_annotation(content, "a.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encode", [grey_png, palette_png])
@pytest.mark.parametrize(
    "num_classes, first_label, ignored",
    [(150, 1, 0), (11, 0, None), (3, 0, 255), (255, 1, 0), (255, 0, 255), (4, 7, 8), (1, 255, 3)],
)
def test_labels(num_classes, first_label, ignored, encode):
    allowed = [*range(first_label, first_label + num_classes)]
    allowed += [] if ignored is None else [ignored]
    raw = np.random.default_rng(1).choice(allowed, (30, 41)).astype(np.uint8)
    labelling = Labelling(num_classes, first_label, ignored)
    annotation = decode_annotation(encode(raw), "given")
    labels = labelling(annotation, "given")
    expected = raw.astype(int) - first_label
    if ignored is not None:
        expected[raw == ignored] = 255
    assert labels.dtype == np.uint8 and labels.flags.writeable
    np.testing.assert_array_equal(labels, expected)
    counted, left_out = labelling.label_counts(labelling.check(annotation, "given"))
    assert counted.tolist() == [(expected == c).sum() for c in range(num_classes)]
    assert left_out == (expected == 255).sum()


@pytest.mark.parametrize(
    "labelling, bad, message",
    [
        (
            Labelling(150, 1, 0),
            {151: 3},
            "a.png has 3 pixels of value 151; values must be in 1..150, or 0, as `first_label` (=1)"
            " is that of the first of 150 classes, and `ignored` (=0) of none",
        ),
        (
            Labelling(11),
            {255: 2, 11: 5},
            "a.png has 5 pixels of value 11, and pixels of 1 other such values; values must be in"
            " 0..10; no value is ignored, as `first_label` (=0) is that of the first of 11 classes",
        ),
        (Labelling(3, 1, 255), {0: 1}, "a.png has 1 pixels of value 0; values must be in 1..3"),
    ],
)
def test_values_of_no_class_are_named_with_the_rule(labelling, bad, message):
    raw = np.full((9, 9), labelling.first_label, np.uint8)
    flat = raw.reshape(-1)
    for value, count in bad.items():
        flat[:count], flat = value, flat[count:]
    with pytest.raises(InputError) as caught:
        labelling(decode_annotation(grey_png(raw), "a.png"), "a.png")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((3, -1), r"`first_label` \(=-1\) must be in 0..255"),
        ((3, 0, 256), r"`ignored` \(=256\) must be in 0..255, or None"),
        ((256,), "there must be 1 to 255 classes, not 256"),
        ((0,), "there must be 1 to 255 classes, not 0"),
        ((7, 250), "there must be 1 to 6 classes, not 7"),
    ],
)
def test_what_cannot_be_a_labelling(arguments, message):
    with pytest.raises(InputError, match=message):
        Labelling(*arguments)


def pair(orientation=None, kind="JPEG", height=30, width=41):
    """Contents of an image with an EXIF orientation, and of its annotation."""
    options = {"quality": 95} if kind == "JPEG" else {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image = photograph(np.random.default_rng(2), 30, 41)
    return saved(image, kind, **options), grey_png(VALUES[:height, :width] // 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [None, *UPRIGHT])
def test_both_are_turned_by_the_images_orientation_or_neither(orientation, kind):
    image_file, annotation_file = pair(orientation, kind)
    labelling = Labelling(128)
    stored, labels = read_pair(image_file, annotation_file, "i", "a", labelling)
    np.testing.assert_array_equal(labels, VALUES // 2)
    np.testing.assert_array_equal(stored, decode(image_file, "i"))
    image, labels = read_pair(image_file, annotation_file, "i", "a", labelling, exif=True)
    turn = UPRIGHT[orientation or 1]
    np.testing.assert_array_equal(labels, turn(VALUES // 2))
    np.testing.assert_array_equal(np.asarray(image), turn(np.asarray(stored)))


@pytest.mark.parametrize("exif", [False, True])
def test_a_tiff_is_turned_by_pillow_and_so_is_its_annotation(exif):
    image_file, annotation_file = pair(6, "TIFF")
    image, labels = read_pair(image_file, annotation_file, "i", "a", Labelling(128), exif)
    assert image.size == (30, 41)
    np.testing.assert_array_equal(labels, UPRIGHT[6](VALUES // 2))


def test_an_annotations_own_orientation_does_not_count():
    image_file, _ = pair()
    exif = Image.Exif()
    exif[0x0112] = 6
    annotation_file = saved(Image.fromarray(VALUES // 2), exif=exif)
    _, labels = read_pair(image_file, annotation_file, "i", "a", Labelling(128), exif=True)
    np.testing.assert_array_equal(labels, VALUES // 2)


def test_damaged_exif_turns_neither():
    image_file, annotation_file = pair(6)
    place = image_file.index(b"Exif\0\0") + 6
    damaged = image_file[:place] + b"\xff" * 8 + image_file[place + 8 :]
    image, labels = read_pair(damaged, annotation_file, "i", "a", Labelling(128), exif=True)
    assert image.size == (41, 30) and labels.shape == (30, 41)


def test_an_image_that_could_not_be_turned_keeps_its_annotation(monkeypatch):
    def fails(image):
        raise ValueError("EXIF that can be read and not be written")

    monkeypatch.setattr(ImageOps, "exif_transpose", fails)
    image, labels = read_pair(*pair(3), "i", "a", Labelling(128), exif=True)
    assert image.size == (41, 30)
    np.testing.assert_array_equal(labels, VALUES // 2)


def test_sizes_that_differ_are_both_said():
    image_file, annotation_file = pair(6, width=40)
    with pytest.raises(InputError) as caught:
        read_pair(image_file, annotation_file, "i.jpg", "a.png", Labelling(128))
    assert str(caught.value) == (
        "the image i.jpg has 30 x 41 pixels (height x width) and its annotation 30 x 40; they must"
        " have the same"
    )
    with pytest.raises(InputError, match=r" 41 x 30 .* 40 x 30, both turned by the image's EXIF"):
        read_pair(image_file, annotation_file, "i.jpg", "a.png", Labelling(128), exif=True)


def test_a_grey_jpeg_is_rgb():
    image_file = saved(photograph(RNG, 30, 41).convert("L"), "JPEG")
    image, _ = read_pair(image_file, grey_png(VALUES // 2), "i", "a", Labelling(128))
    assert image.mode == "RGB"
