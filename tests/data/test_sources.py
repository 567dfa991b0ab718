import io
import os
import pickle
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.ilsvrc import encode
from data.synthetic import write_odd
from oracles import torchvision
from PIL import Image

from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError

LOAD = torchvision.datasets.folder.pil_loader


def gradient(mode="RGB"):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((40, 30)).convert(mode)


def encodings():
    """Name and content of files of every kind that ImageNet has, and a few more."""
    for kind in ("rgb", "grey", "cmyk", "png"):
        yield f"{kind}.JPEG", encode(gradient(), kind)
    for name, mode in (("palette.gif", "P"), ("alpha.png", "RGBA"), ("deep.png", "I;16")):
        image = gradient("L").convert("I").convert(mode) if mode == "I;16" else gradient(mode)
        yield name, _saved(image, name.rpartition(".")[2].upper())
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees, which torchvision does not do
    yield "turned.jpg", _saved(gradient(), "JPEG", exif=exif)


def _saved(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_images_have_the_pixels_that_torchvision_loads(tmp_path):
    files = dict(encodings())
    write_odd(
        tmp_path / "tfds",
        [{"image": content, "label": 2, "file_name": name} for name, content in files.items()],
    )
    source = open_source("odd", "train", tmp_path / "tfds")
    assert len(source) == len(files)
    for i in range(len(source)):
        name = source._records[i]["file_name"].decode()
        (tmp_path / name).write_bytes(files[name])
        image, label = source[i]
        assert (image.mode, image.size, label) == ("RGB", (40, 30), 2), name
        np.testing.assert_array_equal(image, LOAD(tmp_path / name), err_msg=name)


def test_imagenet_has_its_examples_labels_and_names(imagenet):
    data_dir, archives = imagenet
    for split, labels in (("train", archives.train), ("validation", archives.validation)):
        source = open_source("imagenet2012", split, data_dir)
        assert (len(source), source.num_classes) == (len(labels), 1000)
        assert (source.name, source.split) == ("imagenet2012", split)
        assert source.class_names[0] == "n01440764"
        found = {}
        for i in range(len(source)):
            image, label = source[i]
            assert image.mode == "RGB"
            found[source._records[i]["file_name"].decode()] = label
        assert found == labels
    assert set(archives.kinds.values()) == {"cmyk", "png", "grey"}


def test_records_keep_their_encoding(imagenet):
    """TFDS re-encodes the files whose names it knows; the others come as they were."""
    data_dir, archives = imagenet
    source = open_source("imagenet2012", "train", data_dir)
    modes = {}
    for i in range(len(source)):
        record = source._records[i]
        name = record["file_name"].decode()
        if name in archives.kinds:
            image = Image.open(io.BytesIO(record["image"]))
            modes[name] = (image.format, image.mode)
    expected = {"cmyk": ("JPEG", "CMYK"), "png": ("PNG", "RGB"), "grey": ("JPEG", "L")}
    for name, kind in archives.kinds.items():
        if name.startswith("n"):
            listed = name == "n01739381_1309.JPEG"
            assert modes[name] == (("JPEG", "RGB") if listed else expected[kind])


def test_parts_of_a_split(data_dir):
    whole = open_source("digits", "train", data_dir)
    first = open_source("digits", "train[:90%]", data_dir)
    last = open_source("digits", "train[90%:]", data_dir)
    both = open_source("digits", "train+test", data_dir)
    assert len(first) + len(last) == len(whole) == 1437
    assert len(both) == 1797
    np.testing.assert_array_equal(last[0][0], whole[len(first)][0])
    assert (
        open_source("digits:1.0.0", "test", data_dir)[5]
        == open_source("digits", "test", data_dir)[5]
    )


def test_a_pickled_source_reads_the_same(data_dir):
    source = open_source("digits", "train[5:9]", data_dir)
    again = pickle.loads(pickle.dumps(source))
    assert (len(again), again.split, again.class_names) == (4, "train[5:9]", source.class_names)
    assert again[3] == source[3]


def test_the_default_directory_is_that_of_tfds(tmp_path):
    code = "from convnext_jax.data.sources import open_source; open_source('digits', 'test')"
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert (tmp_path / "digits" / "1.0.0" / "dataset_info.json").exists()


def test_reading_imports_neither_tensorflow_nor_jax(imagenet):
    code = (
        "import sys; from convnext_jax.data import sources;"
        "from convnext_jax.classification import transforms;"
        f"source = sources.open_source('imagenet2012', 'train', {str(imagenet[0])!r});"
        "transforms.EvalTransform(224)(source[3][0]);"
        "print([m for m in ('tensorflow', 'jax', 'torch', 'grain') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def fails(match, *arguments):
    with pytest.raises(InputError, match=match) as caught:
        open_source(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_dataset_names_the_closest(tmp_path):
    message = fails("^dataset `imagnet2012` must be", "imagnet2012", "train", tmp_path)
    assert "imagenet2012" in message


def test_a_name_that_is_none(tmp_path):
    fails("^dataset `two words` must be written NAME", "two words", "train", tmp_path)


def test_a_dataset_that_is_not_prepared_gives_the_command(tmp_path):
    message = fails("is not prepared in", "imagenet2012", "train", tmp_path)
    assert f"`python -m convnext_jax.data.prepare imagenet2012 --data_dir={tmp_path}`" in message
    fails("is not prepared in", "digits:7.0.0", "train", tmp_path)


@pytest.mark.parametrize("split", ["val", "train[:x]", "train[:0%]", "train[5000:6000]"])
def test_an_unknown_split_names_those_there_are(data_dir, split):
    fails(
        r"^split `.*` of dataset `digits` must be one of train \(1437\), test \(360\)",
        "digits",
        split,
        data_dir,
    )


@pytest.mark.slow  # imports TensorFlow, to write such files
def test_tfrecord_files_give_a_command_that_converts_them(tmp_path):
    write = (
        "from convnext_jax.data.digits import Digits;"
        f"Digits(data_dir={str(tmp_path)!r}).download_and_prepare(file_format='tfrecord')"
    )
    subprocess.run([sys.executable, "-c", write], capture_output=True, check=True)
    message = fails("is stored as tfrecord and must be array_record", "digits", "test", tmp_path)
    command = shlex.split(message.split("`")[-2])
    assert command[0] == "python"
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test: 360 examples" in done.stdout
    converted = open_source("digits", "test", tmp_path)
    direct = open_source("digits", "test", tmp_path / "other")
    assert [converted[i] for i in range(360)] == [direct[i] for i in range(360)]
    assert not list((tmp_path / "digits" / "1.0.0").glob("incomplete.*"))


def test_a_dataset_to_be_converted_needs_an_image_and_a_label(tmp_path):
    write_odd(tmp_path, [{"text": "a"}], text=tfds.features.Text())
    fails(
        r"^dataset `odd` must have one image and one class label.*text \(Text\)",
        "odd",
        "train",
        tmp_path,
    )


def test_of_several_images_none_is_guessed(tmp_path):
    image = encode(gradient(), "rgb")
    write_odd(
        tmp_path,
        [{"left": image, "right": image, "label": 0}],
        left=tfds.features.Image(),
        right=tfds.features.Image(),
        label=tfds.features.ClassLabel(num_classes=1),
    )
    fails(r"label \(ClassLabel\), left \(Image\), right \(Image\)", "odd", "train", tmp_path)


@pytest.fixture
def broken(tmp_path):
    image = encode(gradient(), "rgb")
    examples = [
        {"image": image, "label": 0, "file_name": "good"},
        {"image": image[: len(image) // 2], "label": 1, "file_name": "cut"},
        {"image": b"not an image", "label": 1, "file_name": "other"},
        {"image": encode(gradient(), "png")[:60], "label": 1, "file_name": "cut png"},
        {"image": b"", "label": 1, "file_name": "empty"},
        {"image": image, "label": -1, "file_name": "unlabelled"},
    ]
    write_odd(tmp_path, examples)
    return open_source("odd", "train", tmp_path)


def test_what_cannot_be_used_is_named(broken):
    names = [broken._records[i]["file_name"].decode() for i in range(len(broken))]
    for i, name in enumerate(names):
        if name == "good":
            broken[i]
            continue
        with pytest.raises(InputError) as caught:
            broken[i]
        message = str(caught.value)
        assert "\n" not in message
        assert f"record {i} of dataset `odd`, split `train` ({name})" in message
        assert ("has label -1" if name == "unlabelled" else "cannot be decoded") in message


def test_damaged_files_are_named(broken, tmp_path):
    (file,) = (tmp_path / "odd" / "1.0.0").glob("*array_record*")
    file.unlink()
    with pytest.raises(
        InputError, match="^record 0 of dataset `odd`, split `train` cannot be read"
    ):
        pickle.loads(pickle.dumps(broken))[0]


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_out_of_range_is_an_error(broken, index):
    with pytest.raises(IndexError, match=rf"`index` \(={index}\)"):
        broken[index]
