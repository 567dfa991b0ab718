"""What is said beside the weights of a UPerNet: windows, classes, licence, what it computes."""

import json

import pytest
import upernet_originals as originals
from oracles import torch
from upernet_originals import CLASSES, CONFIG, MODEL

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.convert import config_text, upernet_settings
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.formats import DIALECTS
from convnext_jax.convert.loading import load
from convnext_jax.errors import InputError

DIALECT = next(dialect for dialect in DIALECTS if dialect.name == "hf, UPerNet")
SQUASH = {"size": {"height": 512, "width": 512}, "image_mean": [0.1, 0.2, 0.3], "resample": 2}


def fed(name="x.pth", *, config=None, processor=None, model=MODEL, classes=CLASSES):
    settings = {}
    if config is not None:
        settings["meta"] = {"config": config}
    if processor is not None:
        settings["preprocessor_config.json"] = processor
    return upernet_settings.preprocessing_of(name, model, classes, DIALECT, settings)


def test_the_config_says_it_first():
    feeding, notes = fed("upernet_512x512.pth", config=CONFIG, processor=SQUASH)
    assert (feeding.input_size, feeding.crop_fraction) == (640, 1.0)
    assert (feeding.crop_mode, feeding.interpolation) == ("window", "bilinear")
    # What stands for pixels in 0..255 is the same as our own for 0..1.
    assert (feeding.mean, feeding.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert notes == [
        "Hugging Face's image processor squashes images to 512x512; here they keep their shape and"
        " are seen in windows of 640 pixels, as the reference evaluates"
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Images are twice as large as windows.
        (CONFIG.replace("(2560, 640)", "(2048, 1280)"), (640, 0.5)),
        # Windows of the test count, not crops of the training.
        (CONFIG.replace("RandomCrop', crop_size=(640, 640)", "X', crop_size=(96, 96)"), (640, 1.0)),
        # Since mmsegmentation 1.0.
        ("crop_size = (320, 320)\ntest_pipeline = [dict(scale=(2048, 640))]", (320, 0.5)),
        ("crop_size = [320, 320]", (320, 1.0)),
        # Nothing that can be read: the name.
        ("crop_size = 320", (448, 1.0)),
        ("crop_size = (0, 0)", (448, 1.0)),
        ("crop_size = (side, side)", (448, 1.0)),
        ("a = dict(crop_size=(320, 320))\nb = dict(crop_size=(480, 480))", (448, 1.0)),
        ("this is (no Python", (448, 1.0)),
        ("(" * 5000, (448, 1.0)),
        (None, (448, 1.0)),
        (7, (448, 1.0)),
    ],
)
def test_windows_by_the_config(config, expected):
    feeding, notes = fed("my_448x448_run.pth", config=config)
    assert (feeding.input_size, feeding.crop_fraction) == expected and notes == []


def test_windows_that_are_not_square():
    feeding, notes = fed(config=CONFIG.replace("(640, 640)", "(512, 1024)"))
    assert (feeding.input_size, feeding.crop_fraction) == (512, 512 / 640)
    assert notes == ["its config has windows of 512x1024 pixels; here they are square, of 512"]


def test_another_mean():
    config = CONFIG.replace("123.675, 116.28, 103.53", "127.5, 127.5, 127.5")
    assert fed(config=config)[0].mean == (0.5, 0.5, 0.5)
    two = f"{CONFIG}\nother = dict(mean=[1.0, 2.0, 3.0])"
    assert fed(config=two)[0].mean == IMAGENET_MEAN


TINY, LARGE = "upernet_convnext_tiny", "upernet_convnext_large"


@pytest.mark.parametrize(
    ("name", "model", "classes", "side", "licence"),
    [
        ("w/upernet_convnext_tiny_1k_512x512.pth", TINY, 150, 512, "MIT"),
        ("https://h/upernet_convnext_large_22k_640x640.pth?x=1", LARGE, 150, 640, "MIT"),
        # Their settings have 512 for all sizes.
        ("hf-hub:openmmlab/upernet-convnext-tiny", TINY, 150, 512, "MIT"),
        ("hf-hub:openmmlab/upernet-convnext-large@main", LARGE, 150, 640, "MIT"),
        # Trained further, under the same name; of a file the size is still likely.
        ("upernet_convnext_large_22k_640x640.pth", LARGE, 7, 640, None),
        ("upernet_convnext_large_22k_640x640.pth", TINY, 150, 640, None),
        ("hf-hub:openmmlab/upernet-convnext-large", LARGE, 7, 512, None),
        (
            "upernet_convnext_tiny_fp16_512x512_160k_ade20k_20220227_124553-cad485de.pth",
            TINY,
            150,
            512,
            None,
        ),
        ("mine@work/x_640x640.pth", TINY, 150, 640, None),
        ("runs_640x640/x.pth", TINY, 150, 512, None),
        ("x_640x480.pth", TINY, 150, 512, None),
    ],
)
def test_published_names(name, model, classes, side, licence):
    processor = SQUASH if name.startswith("hf-hub:") else None
    feeding, notes = fed(name, model=model, classes=classes, processor=processor)
    assert feeding.input_size == side
    assert upernet_settings.licence_of(name, model, classes) == licence
    guessed = [note for note in notes if "neither the file nor its name" in note]
    assert bool(guessed) == name.endswith(("/x.pth", "640x480.pth"))


def test_hugging_face_s_processor():
    feeding, notes = fed("folder_640x640", processor=SQUASH)
    assert (feeding.input_size, feeding.crop_mode) == (512, "window")
    assert feeding.mean == (0.1, 0.2, 0.3) and feeding.std == IMAGENET_STD and feeding.exif
    assert len(notes) == 1 and "squashes images to 512x512" in notes[0]


def names(meta=None, labels=None, classes=2):
    settings = {"meta": meta or {}}
    if labels:
        settings["config.json"] = {"id2label": {str(i): name for i, name in enumerate(labels)}}
    return config_text.class_names_of(settings, classes)


def test_class_names():
    assert names({"CLASSES": ["wall", "bed "]}) == ("wall", "bed")
    assert names({"dataset_meta": {"classes": ["wall", "bed"], "palette": []}}) == ("wall", "bed")
    assert names(labels=["wall", "bed"]) == ("wall", "bed")
    assert names({"CLASSES": None}) is names({"CLASSES": [1, 2]}) is names() is None
    assert names(labels=["LABEL_0", "LABEL_1"]) is None
    with pytest.raises(InputError, match="its `meta` names 3 classes, but the weights are for 2"):
        names({"CLASSES": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config.json": {"pool_scales": [1, 2, 4, 8]}}, "has `pool_scales` (1, 2, 4, 8)"),
        ({"config.json": {"backbone_config": {"hidden_act": "relu"}}}, "has `hidden_act` relu"),
        ({"meta": {"config": "x = dict(pool_scales=(1, 2))"}}, "`meta` has `pool_scales` (1, 2)"),
        ({"meta": {"config": "x = dict(align_corners=True)"}}, "has `align_corners` True"),
        ({"meta": {"cfg": "data_preprocessor = dict(bgr_to_rgb=False)"}}, "has `bgr_to_rgb` False"),
    ],
)
def test_settings_of_another_computation(settings, words):
    with pytest.raises(InputError) as raised:
        upernet_settings.check(settings, MODEL)
    assert words in str(raised.value) and f"but {MODEL} has" in str(raised.value)


def test_settings_of_the_same_computation():
    config = {"pool_scales": [1, 2, 3, 6], "backbone_config": {"hidden_act": "gelu"}}
    upernet_settings.check({"config.json": config, "meta": {"config": CONFIG}}, MODEL)
    upernet_settings.check({}, MODEL)


@pytest.fixture(scope="module")
def model():
    return originals.small()


def test_what_a_file_says_reaches_users(model, tmp_path, capsys):
    path = tmp_path / "iter_160000.pth"
    content = originals.checkpoint(originals.state_of(model, "facebook"))
    torch.save(content, path)
    found = load(str(path))
    assert found.preprocessing.input_size == 640
    assert found.class_names == ("wall", "building", "sky", "floor", "bed")
    assert found.notes == () and found.licence is None

    torch.save({"state_dict": content["state_dict"]}, path)
    main([str(path), str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "note: neither the file nor its name (such as x_640x640.pth) says on crops" in printed
    assert "windows of 512 pixels" in printed

    torch.save(content | {"meta": content["meta"] | {"CLASSES": ("a", "b")}}, path)
    with pytest.raises(InputError, match="names 2 classes, but the weights are for 5"):
        load(str(path))


def test_what_a_folder_says_reaches_users(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(SQUASH))
    main([str(tmp_path / "hf"), str(tmp_path / "run")])
    assert "squashes images to 512x512" in capsys.readouterr().out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["pool_scales"] = [1, 2, 3, 4]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"`config.json` has `pool_scales` \(1, 2, 3, 4\)"):
        load(str(tmp_path / "hf"))
