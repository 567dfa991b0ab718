"""Images are decoded as Pillow and torchvision's loader do, whatever they are stored as."""

import io
import pickle

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from convnext_jax.data.decode import decode, one_line
from convnext_jax.errors import InputError

PHOTOGRAPH = Image.fromarray(sklearn.datasets.load_sample_images().images[0])


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FILES = {
    **{
        f"jpeg-{mode}-{subsampling}-{progressive}": saved(
            PHOTOGRAPH.convert(mode),
            "JPEG",
            progressive=progressive,
            **({"subsampling": subsampling} if mode == "RGB" else {}),
        )
        for mode in ("RGB", "L", "CMYK")
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
        for progressive in (False, True)
    },
    "png": saved(PHOTOGRAPH, "PNG"),
    "png-transparent-colour": saved(PHOTOGRAPH, "PNG", transparency=(0, 0, 0)),
    "png-alpha": saved(PHOTOGRAPH.convert("RGBA"), "PNG"),
    "png-palette": saved(PHOTOGRAPH.quantize(64), "PNG"),
    "png-16-bit": saved(PHOTOGRAPH.convert("I;16"), "PNG"),
    "gif": saved(PHOTOGRAPH, "GIF"),
    "bmp": saved(PHOTOGRAPH, "BMP"),
    "tiff": saved(PHOTOGRAPH, "TIFF", compression="tiff_lzw"),
    "webp": saved(PHOTOGRAPH, "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_of_a_converted_copy(name, tmp_path):
    with Image.open(io.BytesIO(FILES[name])) as opened:
        expected = np.asarray(opened.convert("RGB"))
    path = tmp_path / "image"
    path.write_bytes(FILES[name])
    for image in (decode(FILES[name], "given"), decode(str(path), "given")):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)
        # The file is closed, and the image does not need it any more.
        np.testing.assert_array_equal(np.asarray(image.crop((1, 2, 30, 40))), expected[2:40, 1:30])
        np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(image))), expected)
    path.unlink()


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = decode(saved(PHOTOGRAPH, "JPEG", exif=exif), "given")
    assert image.size == PHOTOGRAPH.size


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "UnidentifiedImageError"),
        (b"no image", "UnidentifiedImageError"),
        (FILES["jpeg-RGB-4:2:0-False"][:5000], "OSError: image file is truncated"),
        ("/nowhere/at/all.jpg", "FileNotFoundError"),
    ],
)
def test_what_cannot_be_decoded_is_an_error_in_one_line(file, reason):
    with pytest.raises(InputError) as error:
        decode(file, "in record 3")
    assert str(error.value).startswith(f"the image in record 3 cannot be decoded: {reason}")
    assert "\n" not in str(error.value)


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
