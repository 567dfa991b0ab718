"""ImageNet-22K, from every layout in miniature to examples."""

import gzip
import io
import shutil
import tracemalloc

import numpy as np
import pytest
from data import miniature22k as mini
from PIL import Image

from convnext_jax.data import imagenet22k, prepare
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError

FIRST, SECOND, THIRD = mini.CLASSES
PICTURES = mini.pictures()


def folders(path):
    mini.write_folders(path, PICTURES)
    (path / FIRST / ".DS_Store").write_bytes(b"no image")
    (path / "words.txt").write_text("a list of classes, as some have beside them")


def tars(path):
    hidden = {"._hidden": b"no image"}  # as tar writes on a Mac
    mini.write_tars(path, {name: hidden | files for name, files in PICTURES.items()})


def folders_and_tars(path):
    mini.write_folders(path, {FIRST: PICTURES[FIRST]})
    mini.write_tars(path, {name: PICTURES[name] for name in (SECOND, THIRD)})


def extracted(path):
    tars(path / "winter21_whole")


def fall11(path):
    mini.write(path / "fall11_whole.tar", mini.whole(PICTURES))


def winter21(path):
    content = gzip.compress(mini.whole(PICTURES, prefix="winter21_whole/"))
    mini.write(path / "winter21_whole.tar.gz", content)


LAYOUTS = (folders, tars, folders_and_tars, extracted, fall11, winter21)


def run(capsys, manual_dir, data_dir):
    """Exit status, standard output and standard error of preparing."""
    arguments = ["imagenet22k", f"--data_dir={data_dir}"]
    arguments += [] if manual_dir is None else [f"--manual_dir={manual_dir}"]
    status = prepare.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def records(source):
    found = [source._records[i] for i in range(len(source))]
    return [(r["file_name"].decode(), r["image"], int(r["label"])) for r in found]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Data directory of a dataset whose original files are gone."""
    base = tmp_path_factory.mktemp("22k")
    folders(base / "downloads")
    prepare.prepare("imagenet22k", str(base / "tfds"), str(base / "downloads"))
    shutil.rmtree(base / "downloads")
    return base / "tfds"


def test_examples_are_the_files(prepared):
    source = open_source("imagenet22k", "train", prepared)
    assert source.class_names == mini.CLASSES
    expected = {
        (file_name, content, label)
        for label, files in enumerate(PICTURES.values())
        for file_name, content in files.items()
    }
    found = records(source)
    assert len(found) == len(expected) == 12
    assert set(found) == expected
    # Shuffled: a part of the split has several classes.
    assert len({label for _, _, label in found[:4]}) > 1
    for i, (_, content, label) in enumerate(found):
        image, read_label = source[i]
        assert read_label == label
        np.testing.assert_array_equal(image, Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_examples_in_the_same_order(layout, prepared, tmp_path, capsys):
    layout(tmp_path / "downloads")
    status, out, err = run(capsys, tmp_path / "downloads", tmp_path / "tfds")
    assert status == 0, err
    assert "imagenet22k is prepared:\n  train: 12 examples\n" in out
    source = open_source("imagenet22k", "train", tmp_path / "tfds")
    expected = open_source("imagenet22k", "train", prepared)
    assert source.class_names == expected.class_names
    assert records(source) == records(expected)


def test_a_part_of_the_split_can_be_held_out(prepared):
    whole, kept, held_out = (
        open_source("imagenet22k", split, prepared)
        for split in ("train", "train[:-5]", "train[-5:]")
    )
    assert (len(kept), len(held_out), kept.num_classes) == (7, 5, 3)
    assert records(kept) + records(held_out) == records(whole)


def test_it_is_known_by_name(tmp_path):
    with pytest.raises(InputError, match="did you mean imagenet22k"):
        open_source("imagenet22", "train", tmp_path)
    with pytest.raises(InputError, match="`python -m convnext_jax.data.prepare imagenet22k "):
        open_source("imagenet22k", "train", tmp_path)


def test_other_classes_replace_those_that_were_there(tmp_path):
    downloads, data_dir = tmp_path / "downloads", str(tmp_path / "tfds")
    tars(downloads)
    prepare.prepare("imagenet22k", data_dir, str(downloads))
    (downloads / f"{SECOND}.tar").unlink()
    prepare.prepare("imagenet22k", data_dir, str(downloads), overwrite=True)
    source = open_source("imagenet22k", "train", data_dir)
    assert source.class_names == (FIRST, THIRD)
    assert sorted({label for _, _, label in records(source)}) == [0, 1]


def test_an_archive_is_read_as_a_stream(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"{i}.JPEG": rng.bytes(200_000) for i in range(40)}
    content = mini.whole(dict.fromkeys(mini.CLASSES, images))
    mini.write(tmp_path / "fall11_whole.tar", content)
    mini.write(tmp_path / "gz" / "fall11_whole.tar.gz", gzip.compress(content, 1))
    del content
    for directory in (tmp_path, tmp_path / "gz"):
        found = imagenet22k.find(directory)
        tracemalloc.start()
        assert found.class_names() == list(mini.CLASSES)
        assert sum(len(picture.content) for picture in found) == 3 * 40 * 200_000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The archive has 24 MB, a class 8, an image 0.2; a few buffers of 0.26 MB are held.
        assert peak < 4e6, peak


def with_file(name, content):
    def layout(path):
        folders(path)
        mini.write(path / name, content)

    return layout


def in_tar(name, content):
    def layout(path):
        mini.write_tars(path, PICTURES | {SECOND: PICTURES[SECOND] | {name: content}})

    return layout


def whole_of(content):
    return lambda path: mini.write(path / "fall11_whole.tar", content)


def whole_gz_of(content):
    return lambda path: mini.write(path / "winter21_whole.tar.gz", content)


def no_folder(path):
    assert not path.exists()


def empty_folder(path):
    tars(path)
    (path / "n00000001").mkdir()


def both(path):
    fall11(path)
    extracted(path)


def class_twice(path):
    twice = mini.tar({"a/n00000001.tar": mini.tar({"x": b"x"}), "n00000001.tar": b""})
    whole_of(twice)(path)


TAR = mini.whole(PICTURES)
CUT_IMAGE = PICTURES[SECOND][f"{SECOND}_1.JPEG"][:-60]
BAD = {
    "no folder": (no_folder, ["`--manual_dir` (=", "must be a directory that has"]),
    "nothing": (lambda path: path.mkdir(), ["has none of these", "fall11_whole.tar"]),
    "something else": (lambda path: mini.write(path / "a.txt", b"a"), ["has none of these"]),
    "empty folder": (empty_folder, ["class folder", "n00000001 must have images, and is empty"]),
    "hidden file only": (
        with_file("n00000001/.DS_Store", b""),
        ["n00000001 must have images, and is empty"],
    ),
    "empty tar": (
        with_file("n00000001.tar", mini.tar({})),
        ["class archive", "n00000001.tar must have images, and is empty"],
    ),
    "tar of no bytes": (
        with_file("n00000001.tar", b""),
        ["n00000001.tar must be a complete tar file", "empty file"],
    ),
    "no tar": (
        with_file("n00000001.tar", b"\x89PNG" * 1000),
        ["n00000001.tar must be a complete tar file"],
    ),
    "cut tar": (
        with_file("n00000001.tar", mini.tar({"a.JPEG": b"a" * 5000})[:3000]),
        ["n00000001.tar must be a complete tar file", "unexpected end of data"],
    ),
    "empty tar in the archive": (
        whole_of(mini.tar({"n00000001.tar": mini.tar({})})),
        ["n00000001.tar in ", "fall11_whole.tar must have images, and is empty"],
    ),
    "cut tar in the archive": (
        whole_of(mini.tar({"n00000001.tar": mini.tar({"a.JPEG": b"a" * 5000})[:3000]})),
        ["n00000001.tar in ", "fall11_whole.tar must be a complete tar file"],
    ),
    "archive of other things": (
        whole_of(mini.tar({"a.JPEG": b"a"})),
        ["fall11_whole.tar must have a tar file for each class", "has none"],
    ),
    "cut archive": (
        whole_of(TAR[: len(TAR) // 2]),
        ["fall11_whole.tar must be a complete tar file"],
    ),
    "cut compressed archive": (
        whole_gz_of(gzip.compress(TAR)[:-9000]),
        ["winter21_whole.tar.gz must be a complete tar file"],
    ),
    "not compressed": (whole_gz_of(TAR), ["winter21_whole.tar.gz must be a complete tar file"]),
    "class twice in the archive": (class_twice, ["has n00000001 twice"]),
    "folder and tar": (
        with_file(f"{SECOND}.tar", mini.tar(PICTURES[SECOND])),
        [f"class {SECOND} must be a folder or a tar file", f"has both {SECOND} and {SECOND}.tar"],
    ),
    "two layouts": (
        both,
        ["has 3 class(es) in ", "winter21_whole and ", "fall11_whole.tar"],
    ),
    "no image": (
        with_file(f"{SECOND}/a.JPEG", b"<html>"),
        ["delete these, or list them in ", f"{SECOND}/a.JPEG (UnidentifiedImageError"],
    ),
    "no image in a tar": (
        in_tar("a.JPEG", b"<html>"),
        [f"{SECOND}/a.JPEG (UnidentifiedImageError"],
    ),
    "cut image": (in_tar("cut.JPEG", CUT_IMAGE), [f"{SECOND}/cut.JPEG (OSError", "truncated"]),
    "empty image": (in_tar("empty.JPEG", b""), [f"{SECOND}/empty.JPEG (UnidentifiedImageError"]),
    "folder in a class": (
        with_file(f"{SECOND}/deeper/a.JPEG", b""),
        [f"{SECOND} must have images only, not deeper"],
    ),
    "skipping what is not there": (
        with_file("skip.txt", f"{FIRST}/nothing.JPEG\n".encode()),
        ["skip.txt must list images that are there", f"there is no {FIRST}/nothing.JPEG"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_prepared_is_one_sentence(case, tmp_path, capsys):
    layout, fragments = BAD[case]
    layout(tmp_path / "downloads")
    status, out, err = run(capsys, tmp_path / "downloads", tmp_path / "tfds")
    # Before it come TFDS's progress bars, where images are read to find the mistake.
    line = err.splitlines()[-1]
    assert (status, "is prepared" in out, "Traceback" in err) == (2, False, False)
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert not (tmp_path / "tfds" / "imagenet22k" / "1.0.0").exists()


def test_no_manual_dir(tmp_path, capsys):
    status, out, err = run(capsys, None, tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("error: `--manual_dir` (=None) must be a directory that has a folder")
    assert err.count("\n") == 1


def test_all_unusable_images_are_named_and_can_be_skipped(tmp_path, capsys):
    downloads = tmp_path / "downloads"
    folders(downloads)
    names = [f"{FIRST}/a.JPEG", f"{THIRD}/b.JPEG"]
    for name in names:
        mini.write(downloads / name, b"no image")
    status, _, err = run(capsys, downloads, tmp_path / "tfds")
    assert status == 2
    assert all(name in err for name in names)
    (downloads / "skip.txt").write_text("\n".join(names))
    status, out, err = run(capsys, downloads, tmp_path / "tfds")
    assert status == 0, err
    assert "train: 12 examples" in out


def test_many_unusable_images_end_it_at_once(tmp_path):
    mini.write_folders(tmp_path, {FIRST: {f"{i:03d}.JPEG": b"no image" for i in range(30)}})
    with pytest.raises(InputError) as caught:
        prepare.prepare("imagenet22k", str(tmp_path / "tfds"), str(tmp_path))
    assert "019.JPEG" in str(caught.value)
    assert "020.JPEG" not in str(caught.value)
