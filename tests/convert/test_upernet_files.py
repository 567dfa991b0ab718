"""UPerNet as Facebook, mmsegmentation and Hugging Face publish it: in and out, bit by bit."""

import jax
import numpy as np
import pytest
import upernet_originals as originals
from classification.small import FEEDING, save
from flax import nnx
from oracles import torch
from random_models import random_images
from segmentation import hf_upernet
from transformers import AutoImageProcessor, UperNetForSemanticSegmentation
from upernet_originals import CLASSES, MODEL, WIDTHS

from convnext_jax import tree
from convnext_jax.checkpointing.reading import read_description
from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelSpec
from convnext_jax.weights.find import find
from convnext_jax.weights.load import load_pretrained

FORMATS = ("facebook", "mmseg", "hf")
PYTORCH = ("facebook", "mmseg")
COUNTER = ".num_batches_tracked"


@pytest.fixture(scope="module")
def model():
    return originals.small()


@pytest.fixture(scope="module")
def sources(model, tmp_path_factory):
    """The same weights as each publisher has them."""
    root = tmp_path_factory.mktemp("published")
    places = {"hf": root / "hf"}
    model.save_pretrained(places["hf"])
    for format in PYTORCH:
        places[format] = root / f"{format}.pth"
        torch.save(originals.checkpoint(originals.state_of(model, format)), places[format])
    return places


@pytest.fixture(scope="module")
def expected(model):
    """The weights and statistics by our names, as the tests of the model have them."""
    params, statistics = hf_upernet.renamed(model.state_dict())
    return params | statistics


def arrays(converted):
    return tree.flatten_with_names(converted.params) | tree.flatten_with_names(
        converted.batch_stats
    )


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def logits_of_both(theirs, ours):
    """Of both decoders, at a quarter of the image's size; NCHW."""
    images = random_images(2, 70, 100, 3)
    graph, state = nnx.split(ours)
    found = jax.jit(lambda state, x: nnx.merge(graph, state)(x).decode)(state, images)
    with torch.no_grad():
        maps = theirs.backbone(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).feature_maps
        expected = theirs.decode_head(maps)
    return np.asarray(found).transpose(0, 3, 1, 2), expected.numpy()


SIZES = {
    # None of the registry's, so that the command is told.
    "tiny": (hf_upernet.DEPTHS, hf_upernet.DIMS, "upernet_convnext_tiny"),
    "ConvNeXt-T": ((3, 3, 9, 3), (96, 192, 384, 768), None),
}


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_hugging_face(size, tmp_path):
    depths, dims, name = SIZES[size]
    theirs = hf_upernet.build(depths, dims, decoder=24, auxiliary=10)
    theirs.save_pretrained(tmp_path / "hf")
    arguments = [str(tmp_path / "hf"), str(tmp_path / "run")]
    if name:
        arguments += ["--model", name, f"--override=depths={list(depths)}"]
        arguments += [f"--override=dims={list(dims)}"]
    main(arguments)
    ours = load_pretrained(tmp_path / "run")
    found, expected = logits_of_both(theirs, ours)
    assert found.shape == (2, hf_upernet.CLASSES, 17, 25)
    # float32 sums in another order, through up to 30 layers; another layout or norm gives 1e-2.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_reading_takes_every_bit(format, sources, expected):
    converted = load(str(sources[format]))
    assert (converted.model_name, converted.num_classes) == (MODEL, CLASSES)
    assert converted.overrides == WIDTHS and converted.format == format
    same(arrays(converted), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_a_checkpoint_of_ours_and_back(format, sources, expected, model, tmp_path, capsys):
    main([str(sources[format]), str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert f"{MODEL}, {CLASSES} classes, in the format {format}" in printed
    assert completed_steps(tmp_path / "run" / "checkpoints") == [0]
    described = read_description(tmp_path / "run" / "checkpoints", 0)
    assert described["model"] == {"name": MODEL, "overrides": WIDTHS}
    assert described["metric"] == "miou"
    weights = find(tmp_path / "run")
    same(
        tree.flatten_with_names(weights.on_host())
        | tree.flatten_with_names(weights.batch_stats_on_host()),
        expected,
    )
    with pytest.raises(InputError, match="has the metric `eval_params_miou`"):
        find(tmp_path / "run", step="best")

    back = tmp_path / ("folder" if format == "hf" else "back.pth")
    main([str(tmp_path / "run"), str(back), "--to", format])
    if format == "hf":
        again = UperNetForSemanticSegmentation.from_pretrained(back).state_dict()
    else:
        again = torch.load(back, weights_only=True)["state_dict"]
    written_as_it_was(again, originals.state_of(model, format))


def written_as_it_was(again, original):
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert again[name].dtype == tensor.dtype, name
        assert torch.equal(again[name], tensor), name  # nothing was counted by the original
    counters = [name for name in again if name.endswith(COUNTER)]
    assert len(counters) == 13 and again[counters[0]].dtype == torch.int64


@pytest.mark.parametrize("format", PYTORCH)
def test_safetensors(format, sources, model, tmp_path):
    import safetensors.torch

    main([str(sources[format]), str(tmp_path / "out.safetensors"), "--to", format])
    again = safetensors.torch.load_file(tmp_path / "out.safetensors")
    written_as_it_was(again, originals.state_of(model, format))
    same(arrays(load(str(tmp_path / "out.safetensors"))), arrays(load(str(sources[format]))))


def test_the_publishers_formats_into_each_other(sources, model, tmp_path):
    main([str(sources["facebook"]), str(tmp_path / "mmseg.pth"), "--to", "mmseg"])
    again = torch.load(tmp_path / "mmseg.pth", weights_only=True)["state_dict"]
    written_as_it_was(again, originals.state_of(model, "mmseg"))


def test_the_folder_that_from_pretrained_opens(sources, tmp_path, capsys):
    main([str(sources["facebook"]), str(tmp_path / "folder"), "--to", "hf"])
    assert "squashes images to 640x640" in capsys.readouterr().out
    again, info = UperNetForSemanticSegmentation.from_pretrained(
        tmp_path / "folder", output_loading_info=True
    )
    assert not any(info.values()), info
    original = UperNetForSemanticSegmentation.from_pretrained(sources["hf"])
    config, wanted = again.config, original.config
    for key in ("hidden_size", "auxiliary_channels", "pool_scales", "num_labels"):
        assert getattr(config, key) == getattr(wanted, key), key
    for key in ("depths", "hidden_sizes", "out_features", "hidden_act"):
        assert getattr(config.backbone_config, key) == getattr(wanted.backbone_config, key), key
    assert config.id2label[4] == "bed" and config.label2id["wall"] == 0
    ours = load_pretrained(sources["facebook"])
    found, expected = logits_of_both(again.eval(), ours)
    scale = np.abs(expected).max()
    # As above: the same weights in two libraries.
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)

    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder", backend="pil")
    pixels = processor(np.full((50, 90, 3), 124, np.uint8), return_tensors="np").pixel_values
    assert pixels.shape == (1, 3, 640, 640)
    feeding = find(sources["facebook"]).description.preprocessing
    np.testing.assert_allclose(
        pixels[0, :, 0, 0], (124 / 255 - np.array(feeding.mean)) / feeding.std, atol=1e-6
    )  # theirs are float32


def test_classes_go_into_pytorch_s_files_too(sources, tmp_path, capsys):
    main([str(sources["facebook"]), str(tmp_path / "out.pth"), "--to", "mmseg"])
    printed = capsys.readouterr().out
    assert "does not say that images are fed in windows of 640 pixels" in printed
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["meta"]["CLASSES"] == [name.strip() for name in originals.NAMES]
    assert load(str(tmp_path / "out.pth")).class_names == tuple(content["meta"]["CLASSES"])
    main([str(sources["facebook"]), str(tmp_path / "x.safetensors"), "--to", "mmseg"])
    assert "does not say what the classes are called" in capsys.readouterr().out


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.random(x.shape, np.float32) + 0.5, shapes)


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_s_checkpoint_exports_with_the_statistics_of_what_is_taken(ema, tmp_path):
    spec = ModelSpec(MODEL, CLASSES, WIDTHS)
    shapes, statistics = spec.abstract_params(), spec.abstract_batch_stats()
    items = {
        "params": drawn(shapes, 0),
        "batch_stats": drawn(statistics, 1),
        "ema": drawn(shapes, 2),
        "ema_batch_stats": drawn(statistics, 3),
    }
    save(tmp_path, {7: (items, None)}, spec, FEEDING, originals.NAMES)
    flag = "--ema" if ema else "--no-ema"
    main([str(tmp_path), str(tmp_path / "out.pth"), "--to", "facebook", flag])
    which = ("ema", "ema_batch_stats") if ema else ("params", "batch_stats")
    wanted = {}
    for item in which:
        wanted |= tree.flatten_with_names(items[item])
    same(arrays(load(str(tmp_path / "out.pth"))), wanted)


def test_statistics_are_the_model_s(sources, expected):
    params = load(str(sources["facebook"]))
    with pytest.raises(InputError, match=r"`auxiliary_head/convs/0/bn/mean` .* is missing"):
        export(params.params, MODEL, "facebook", sources["hf"] / "x.pth", overrides=WIDTHS)
    loaded = load_pretrained(sources["facebook"])
    found = tree.flatten_with_names(nnx.to_pure_dict(nnx.state(loaded, nnx.BatchStat)))
    assert len(found) == 26
    same(found, {name: expected[name] for name in found})


def test_two_classes_more_are_two_untrained_classifiers(sources, expected):
    found = load(str(sources["mmseg"]), num_classes=CLASSES + 2)
    assert "untrained" in found.notes[0] and found.class_names is None
    changed = arrays(found)
    for name, array in expected.items():
        if "conv_seg" not in name:
            np.testing.assert_array_equal(changed[name], array, err_msg=name)
    for head, width in (("decode_head", 16), ("auxiliary_head", 12)):
        kernel = changed[f"{head}/conv_seg/kernel"]
        assert kernel.shape == (1, 1, width, CLASSES + 2)
        assert 0.005 < np.std(kernel) < 0.015 and not changed[f"{head}/conv_seg/bias"].any()
    with pytest.raises(InputError, match=r"`num_classes` \(=0\) must lie in 1..255"):
        load(str(sources["mmseg"]), num_classes=0)


def test_grey_images(sources, expected):
    kernel = "backbone/downsample_layers/0/0/kernel"
    found = arrays(load(str(sources["facebook"]), in_channels=1))
    np.testing.assert_allclose(found[kernel], expected[kernel].sum(2, keepdims=True), rtol=1e-6)


def test_a_file_is_loaded_for_other_classes_and_channels(sources, expected):
    loaded = load_pretrained(sources["facebook"], 3, in_channels=1)
    found = tree.flatten_with_names(nnx.to_pure_dict(nnx.state(loaded, nnx.Param)))
    assert found["backbone/downsample_layers/0/0/kernel"].shape == (4, 4, 1, 40)
    for head in ("decode_head", "auxiliary_head"):
        assert found[f"{head}/conv_seg/kernel"].shape[-1] == 3
    name = "decode_head/bottleneck/conv/kernel"
    np.testing.assert_array_equal(found[name], expected[name])
