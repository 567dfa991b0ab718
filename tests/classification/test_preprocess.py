"""Pixels against timm's evaluation transforms and torchvision's loader."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from classification.small import PHOTOGRAPHS, photographs
from oracles import timm, torchvision
from PIL import Image

from convnext_jax.builders import build_run
from convnext_jax.classification.preprocess import ImageError, Preprocess
from convnext_jax.config import default_config, resolve
from convnext_jax.data.normalize import normalize
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import PRETRAINED
from convnext_jax.models.spec import ModelDescription
from convnext_jax.models.variants import VARIANTS, Preprocessing
from convnext_jax.training.stopwatch import Stopwatch


def cases():
    """One set of weights for each combination of size, crop and interpolation that occurs."""
    found = {}
    for row in PRETRAINED.values():
        key = (row.input_size, row.crop_fraction, row.crop_mode, row.interpolation)
        found.setdefault(key, row.name)
    assert len(found) >= 9
    return sorted(found.values())


def timm_transform(record: Preprocessing, **options):
    return timm.data.create_transform(
        input_size=(3, record.input_size, record.input_size),
        crop_pct=record.crop_fraction,
        crop_mode=record.crop_mode,
        interpolation=record.interpolation,
        mean=record.mean,
        std=record.std,
        **options,
    )


def hwc(tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", cases())
def test_pixels_are_those_of_timm_for_every_kind_of_weights(name):
    config = timm.models.get_pretrained_cfg(name).to_dict()
    resolved = timm.data.resolve_model_data_config(None, pretrained_cfg=config)
    reference = timm.data.create_transform(**resolved, normalize=False)
    preprocess = Preprocess(PRETRAINED[name])
    for image in photographs():
        pixels = preprocess(image)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, hwc(reference(image)), err_msg=str(image.size))


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_combinations_that_other_weights_may_have(mode, interpolation):
    record = Preprocessing(
        input_size=97, crop_fraction=0.83, crop_mode=mode, interpolation=interpolation
    )
    reference = timm_transform(record, normalize=False)
    for image in photographs():
        np.testing.assert_array_equal(Preprocess(record)(image), hwc(reference(image)))


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "test_convnext", "convnext_large_mlp", "convnext_zepto_rms_ols"]
)
def test_normalised_as_by_timm(name):
    record = VARIANTS[name]
    pixels = Preprocess(record)(PHOTOGRAPHS[0])
    ours = jax.jit(lambda x: normalize(x, record.mean, record.std))(pixels[None])[0]
    # float32 with values up to 3: a division may be done as a product with the reciprocal.
    np.testing.assert_allclose(ours, hwc(timm_transform(record)(PHOTOGRAPHS[0])), atol=2e-6)


# How EXIF stores an upright image: which of its sides are the first row and the first column.
STORED = {
    1: lambda x: x,  # top, left
    2: lambda x: x[:, ::-1],  # top, right
    3: lambda x: x[::-1, ::-1],  # bottom, right
    4: lambda x: x[::-1],  # bottom, left
    5: lambda x: x.swapaxes(0, 1),  # left, top
    6: lambda x: x[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda x: x[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, file_format):
    upright = PHOTOGRAPHS[0].crop((100, 50, 300, 190))
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(
        file, file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {})
    )
    record = Preprocessing(input_size=64, crop_mode="squash", exif=True)
    for image in (Image.open(file), file):  # as PIL image, and to be opened
        pixels = Preprocess(record).read(image)
        np.testing.assert_array_equal(pixels, Preprocess(record)(upright))
    if file_format == "TIFF":
        return  # PIL's reader turns these itself, for torchvision and timm as well
    # By default the pixels stay as they are stored.
    record = Preprocessing(input_size=64, crop_mode="squash")
    np.testing.assert_array_equal(Preprocess(record).read(file), Preprocess(record)(stored))


@pytest.mark.parametrize("exif", [False, True])
def test_training_evaluates_the_pixels_that_prediction_sees(exif, tmp_path):
    """A phone's photograph, in portrait: turned in both or in neither."""
    stored = Image.Exif()
    stored[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for number in range(8):  # one for each device
            PHOTOGRAPHS[0].save(tmp_path / split / "a" / f"{number}.jpg", exif=stored)
    config = default_config()
    config.data.update(name="folder", dir=str(tmp_path), eval_split="val", global_batch=8)
    config.data.update(exif=exif, image_size=64, eval_crop=1.0)
    config.num_steps = 1
    run = build_run(resolve(config), Stopwatch())
    (batch,) = run.evaluator._passes()
    run.evaluator.close()
    description = ModelDescription.from_json(run.description)
    assert description.preprocessing.exif == exif
    seen = Preprocess(description.preprocessing).read(tmp_path / "val" / "a" / "0.jpg")
    np.testing.assert_array_equal(batch["image"][0], seen)
    other = dataclasses.replace(description.preprocessing, exif=not exif)
    assert not np.array_equal(Preprocess(other).read(tmp_path / "val" / "a" / "0.jpg"), seen)
    # Checkpoints from before the field was there say nothing, which is False.
    values = run.description | {"preprocessing": dict(run.description["preprocessing"])}
    del values["preprocessing"]["exif"]
    assert not ModelDescription.from_json(values).preprocessing.exif


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_no_orientation(exif, tmp_path):
    PHOTOGRAPHS[0].save(tmp_path / "x.jpg", exif=exif)
    expected = Preprocess(Preprocessing())(Image.open(tmp_path / "x.jpg").convert("RGB"))
    turning = Preprocess(Preprocessing(exif=True))
    np.testing.assert_array_equal(turning.read(tmp_path / "x.jpg"), expected)


def files_of_every_mode():
    photo = PHOTOGRAPHS[1].resize((90, 70))
    grey = photo.convert("L")
    palette = photo.quantize(17)
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 3)
    alpha = photo.copy()
    alpha.putalpha(grey)
    yield "cmyk.jpg", photo.convert("CMYK"), {}
    yield "ycbcr.jpg", photo.convert("YCbCr"), {}
    yield "grey.png", grey, {}
    yield "grey.alpha.png", alpha.convert("LA"), {}
    yield "bits.png", photo.convert("1"), {}
    yield "palette.png", palette, {}
    yield "palette.transparent.png", palette, {"transparency": 3}
    yield "palette.alphas.png", palette, {"transparency": bytes(range(17))}
    yield "palette.transparent.gif", palette, {"transparency": 3}
    yield "animation.gif", palette, {"save_all": True, "append_images": [palette.rotate(90)]}
    yield "alpha.png", alpha, {}
    yield "alpha.webp", alpha, {}
    yield "deep.png", deep, {}
    yield "deep.tiff", deep, {}
    yield "integer.tiff", grey.convert("I"), {}
    yield "float.tiff", grey.convert("F"), {}
    yield "lab.tiff", Image.frombytes("LAB", photo.size, photo.tobytes()), {}


@pytest.mark.parametrize("case", list(files_of_every_mode()), ids=lambda case: case[0])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_every_mode_is_converted_as_by_torchvision(case, tmp_path):
    name, image, options = case
    image.save(tmp_path / name, **options)
    loaded = torchvision.datasets.folder.pil_loader(tmp_path / name)
    expected = hwc(timm_transform(Preprocessing(), normalize=False)(loaded))
    np.testing.assert_array_equal(Preprocess(Preprocessing()).read(tmp_path / name), expected)


def test_what_cannot_be_read_says_why(tmp_path):
    preprocess = Preprocess(Preprocessing(input_size=32))
    good = io.BytesIO()
    PHOTOGRAPHS[0].save(good, "JPEG")
    (tmp_path / "half.jpg").write_bytes(good.getvalue()[:20000])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name, reason in {
        "half.jpg": "cannot be read: OSError: image file is truncated",
        "text.jpg": "no image of a kind that PIL knows",
        "empty.jpg": "no image of a kind that PIL knows",
        "absent.jpg": "there is no such file",
        "": "cannot be read: IsADirectoryError",
    }.items():
        with pytest.raises(ImageError, match=reason):
            preprocess.read(tmp_path / name)


def test_strips_that_would_fill_the_memory_are_refused():
    strip = Image.new("RGB", (1, 100_000))
    with pytest.raises(ImageError, match="its sides, 1 and 100000 pixels, differ too much"):
        Preprocess(Preprocessing())(strip)
    assert Preprocess(Preprocessing(crop_mode="squash"))(strip).shape == (224, 224, 3)
    assert Preprocess(Preprocessing())(Image.new("RGB", (1, 300))).shape == (224, 224, 3)


@pytest.mark.parametrize(
    "field, value", [("crop_mode", "border"), ("interpolation", "cubic"), ("input_size", 0)]
)
def test_a_record_out_of_range_is_an_error(field, value):
    with pytest.raises(InputError, match=str(value)):
        Preprocess(Preprocessing(**{field: value}))
