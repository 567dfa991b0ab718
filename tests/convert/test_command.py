"""`python -m convnext_jax.convert --to`: the other libraries load what it writes."""

import contextlib
import dataclasses
import itertools
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import sklearn.datasets
from oracles import timm, torch, torchvision
from originals import CLASSES, SMALL, facebook_names, hf_model, randomised, torch_images
from PIL import Image
from random_models import random_images

from convnext_jax import progress
from convnext_jax.classification.preprocess import Preprocess
from convnext_jax.convert import published as published_settings
from convnext_jax.convert import write
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export
from convnext_jax.errors import InputError
from convnext_jax.models.registry import get_variant
from convnext_jax.models.variants import Preprocessing


@pytest.fixture(scope="module")
def atto():
    return randomised(timm.create_model("convnext_atto", num_classes=7))


@pytest.fixture(scope="module")
def published(atto, tmp_path_factory):
    """A file such as Facebook publishes, of a model small enough to compute."""
    path = tmp_path_factory.mktemp("published") / "weights.pth"
    state = facebook_names(atto.state_dict())
    state = {n: t.flatten(1) if "pwconv" in n and "weight" in n else t for n, t in state.items()}
    torch.save({"model": state}, path)
    return path


def logits(model):
    images = torch_images(random_images(2, 64, 64, 3))
    with torch.no_grad():
        output = model.eval()(images)
    return getattr(output, "logits", output)


def close(one, other):
    # The same weights in the same library or another; both compute in float32.
    return float((one - other).abs().max() / other.abs().max()) < 1e-5


def test_to_timm(atto, published, tmp_path, capsys):
    for name in ("out.safetensors", "out.pth"):
        main([str(published), str(tmp_path / name), "--to", "timm"])
        model = timm.create_model("convnext_atto", num_classes=7)
        timm.models.load_checkpoint(model, str(tmp_path / name), strict=True)
        assert torch.equal(logits(model), logits(atto))
    printed = capsys.readouterr().out
    assert "convnext_atto, 7 classes, in the format facebook" in printed
    assert "does not say what the classes are called" in printed and "at 224 pixels" in printed
    assert "licence of the weights: unknown" in printed and "SHA-256 of weights.pth" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "out.safetensors"]


def test_to_torchvision(atto, published, tmp_path):
    main([str(published), str(tmp_path / "out.pth"), "--to", "torchvision"])
    following = (80, 160, 320, None)
    sizes = zip((40, 80, 160, 320), following, (2, 2, 6, 2), strict=True)
    blocks = [torchvision.models.convnext.CNBlockConfig(*size) for size in sizes]
    model = torchvision.models.convnext.ConvNeXt(blocks, num_classes=7)
    model.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    assert close(logits(model), logits(atto))


def test_to_facebook(published, tmp_path):
    main([str(published), str(tmp_path / "out.pth"), "--to", "facebook"])
    again = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    original = torch.load(published, weights_only=True)["model"]
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_atto_ols"])
def test_to_a_folder_that_timm_opens(tmp_path, name):
    """With its size, classes and names: nothing is to be told."""
    overrides = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 40), "norm_eps": 1e-5}
    model = randomised(timm.create_model(name, num_classes=3, **overrides))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    converted = load(str(tmp_path / "weights.pth"), model=name, overrides=overrides)
    names = ("flower", "temple", "tree")
    feeding = dataclasses.replace(
        converted.preprocessing, input_size=96, crop_fraction=0.9, mean=(0.5, 0.4, 0.3)
    )
    folder = tmp_path / "folder"
    export(
        converted.params,
        name,
        "timm",
        folder,
        overrides=overrides,
        preprocessing=feeding,
        class_names=names,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits(again), logits(model.eval()))
    told = timm.data.resolve_model_data_config(again)
    assert tuple(told["input_size"]) == (3, 96, 96) and told["crop_pct"] == 0.9
    assert tuple(told["mean"]) == (0.5, 0.4, 0.3)
    assert told["interpolation"] == feeding.interpolation
    assert again.pretrained_cfg["label_names"] == list(names)
    back = load(str(folder))
    assert (back.model_name, back.class_names, back.preprocessing) == (name, names, feeding)
    assert back.overrides == overrides
    for one, other in zip(
        jax.tree.leaves(back.params), jax.tree.leaves(converted.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("classes", [7, 0])
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_to_a_folder_that_from_pretrained_opens(tmp_path, name, classes):
    transformers = pytest.importorskip("transformers")
    model = randomised(timm.create_model(name, num_classes=classes))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    converted = load(str(tmp_path / "weights.pth"))
    labels = [f"kind {i}" for i in range(classes)] if classes else None
    export(converted.params, name, "hf", tmp_path / "folder", class_names=labels)
    automatic = "AutoModelForImageClassification" if classes else "AutoModel"
    again, info = getattr(transformers, automatic).from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not any(info.values()), info
    variant = get_variant(name)
    kind = "ConvNextV2" if variant.grn else "ConvNext"
    assert isinstance(again, type(hf_model(kind, classes)))
    with torch.no_grad():
        output = again.eval()(torch_images(random_images(2, 64, 64, 3)))
    assert close(output.logits if classes else output.pooler_output, logits(model))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert tuple(processor.image_mean) == variant.mean
    assert processor.crop_pct == variant.crop_fraction
    # And back: with the names of the classes, and how images are fed.
    back = load(str(tmp_path / "folder"))
    assert back.class_names == (tuple(labels) if labels else None)
    assert (back.model_name, back.num_classes) == (name, classes)
    assert back.preprocessing == dataclasses.replace(converted.preprocessing, exif=True)


def test_transformers_turns_images_as_it_loads_them(tmp_path):
    # So weights that come with its settings are fed so, whatever those that were exported were.
    image_utils = pytest.importorskip("transformers").image_utils
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert image_utils.load_image(str(tmp_path / "x.jpg")).size == (20, 40)


@pytest.mark.parametrize(
    "feeding",
    [
        {},
        {"input_size": 384, "crop_fraction": 1.0, "crop_mode": "squash"},
        {"input_size": 384, "crop_fraction": 1.0},
        {"input_size": 400, "crop_fraction": 0.9, "interpolation": "bilinear"},
        {"input_size": 96, "crop_fraction": 1.0, "crop_mode": "squash"},
        {"input_size": 96, "crop_fraction": 0.85, "crop_mode": "squash"},
        {"input_size": 96, "interpolation": "nearest"},
        {"input_size": 96, "crop_fraction": 0.95, "interpolation": "lanczos"},
    ],
    ids=str,
)
def test_transformers_feeds_images_as_we_do(feeding, tmp_path):
    transformers = pytest.importorskip("transformers")
    feeding = Preprocessing(**feeding)
    settings = write._hf_preprocessor(feeding)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = sklearn.datasets.load_sample_images().images[0]
    theirs = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
    ours = (Preprocess(feeding)(Image.fromarray(image)) / 255 - feeding.mean) / feeding.std
    assert theirs.shape == (3, feeding.input_size, feeding.input_size)
    # Both resize with PIL. Of an odd rest each cuts the one pixel more on another side, so the best
    # of the shifts by a pixel counts; without the right one, or with another crop, 0.1 and more.
    shifts = itertools.product((-1, 0, 1), repeat=2)
    moved = [np.roll(theirs.transpose(1, 2, 0), shift, (0, 1)) for shift in shifts]
    assert min(np.abs(one - ours)[1:-1, 1:-1].mean() for one in moved) < 0.01
    again = published_settings._from_hf(settings)
    back = dataclasses.replace(Preprocessing(), **again)
    np.testing.assert_array_equal(
        Preprocess(back)(Image.fromarray(image)), Preprocess(feeding)(Image.fromarray(image))
    )


@pytest.mark.parametrize("kind", ["ConvNext", "ConvNextV2", "DINOv3ConvNext"])
def test_folders_that_transformers_saves(tmp_path, kind):
    model = randomised(hf_model(kind))
    name = "convnextv2_tiny" if kind == "ConvNextV2" else "convnext_tiny"
    for shards in ("50MB", "20KB"):
        model.save_pretrained(tmp_path / shards, max_shard_size=shards)
        converted = load(str(tmp_path / shards), model=name, overrides=SMALL)
        assert converted.num_classes == (0 if kind == "DINOv3ConvNext" else CLASSES)
        assert converted.class_names is None  # transformers makes up names.
        kernel = dict(model.named_parameters())[
            {
                "ConvNext": "convnext.encoder.stages.1.layers.1.dwconv.weight",
                "ConvNextV2": "convnextv2.encoder.stages.1.layers.1.dwconv.weight",
                "DINOv3ConvNext": "model.stages.1.layers.1.depthwise_conv.weight",
            }[kind]
        ]
        ours = converted.params["stages"][1][1]["dwconv"]["kernel"]
        np.testing.assert_array_equal(ours[:, :, 0], kernel[:, 0].detach().permute(1, 2, 0))
    assert len(converted.sha256) > 1


def test_a_model_trained_here_with_other_classes(published, tmp_path):
    arguments = [str(published), str(tmp_path / "out.safetensors"), "--to", "timm"]
    main([*arguments, "--num_classes", "3"])
    model = timm.create_model("convnext_atto", num_classes=3)
    timm.models.load_checkpoint(model, str(tmp_path / "out.safetensors"), strict=True)
    assert logits(model).shape == (2, 3)


def test_failures_are_one_sentence(published, tmp_path, capsys):
    for arguments, words in [
        ([str(tmp_path / "absent.pth"), "out.pth", "--to", "timm"], "there is no file"),
        ([str(published), str(tmp_path / "out.zip"), "--to", "timm"], "must end in one of"),
        ([str(published), str(published / "out.pth"), "--to", "timm"], "cannot be written"),
        ([str(published), str(tmp_path / "x.pth"), "--to", "timm", "--ema"], "no moving average"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_not_written(published, tmp_path):
    params = load(str(published)).params
    with pytest.raises(InputError, match="not those of convnext_femto: .* has shape"):
        export(params, "convnext_femto", "timm", tmp_path / "out.pth")
    params["head"]["bias"] = params["head"]["bias"].astype(np.float16)
    with pytest.raises(InputError, match="`head/bias` must be float32"):
        export(params, "convnext_atto", "timm", tmp_path / "out.pth")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_xlarge_converts_in_little_memory_and_time(tmp_path, suffix, record_property):
    model = timm.create_model("convnext_xlarge")
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    path = tmp_path / f"weights{suffix}"
    timm_state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if suffix == ".pth":
        torch.save(timm_state, path)
    else:
        import safetensors.torch

        safetensors.torch.save_file(timm_state, path)
    # Not `getrusage`: what that says begins with the memory of the process that started this one.
    program = f"""
import re
from pathlib import Path
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
converted = load({str(path)!r})
print(converted.model_name, peak())
export(converted.params, "convnext_xlarge", "timm", Path({str(tmp_path / "out.safetensors")!r}))
print(peak())
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    name, reading, writing = done.stdout.split()
    record_property("seconds", seconds)
    record_property("peak memory, times the size", max(int(reading), int(writing)) / size)
    assert name == "convnext_xlarge"
    assert int(writing) < 3 * size
    assert seconds < 60


def test_the_bar_counts_each_byte_that_it_was_told_of(published, tmp_path, monkeypatch):
    """In both directions; as much as the weights, as often as they are gone through."""
    bars = []

    class Bar(contextlib.nullcontext):
        def __init__(self, what, total, unit):
            super().__init__(self)
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, size):
            self.n += size

        def refresh(self):
            pass

    monkeypatch.setattr(progress, "progress_bar", Bar)
    main([str(published), str(tmp_path / "run")])
    main([str(tmp_path / "run"), str(tmp_path / "back.safetensors"), "--to", "timm"])
    read, written = bars
    size = 4 * sum(np.size(leaf) for leaf in jax.tree.leaves(load(str(published)).params))
    # A file has some bytes that are no weights.
    assert 3 * size <= read.n <= read.total == 3 * published.stat().st_size < 3.1 * size
    assert written.n == written.total == 2 * size
    load(str(published))  # from Python there is no bar
    assert len(bars) == 2
