"""Names and settings beside weights: licence, preprocessing and classes."""

import numpy as np
import pytest
from oracles import torch, torchvision
from PIL import Image

from convnext_jax.classification.preprocess import Preprocess
from convnext_jax.convert import published
from convnext_jax.convert.formats import DIALECTS
from convnext_jax.errors import InputError
from convnext_jax.models.pretrained import NOT_ON_HUB, PRETRAINED
from convnext_jax.models.registry import get_pretrained

DIALECT = {dialect.name: dialect for dialect in DIALECTS}


@pytest.mark.parametrize(
    ("name", "model", "classes", "tag"),
    [
        ("https://host/convnext_tiny_1k_224_ema.pth", "convnext_tiny", 1000, "fb_in1k"),
        ("w/convnext_base_22k_224.pth", "convnext_base", 21841, "fb_in22k"),
        ("convnext_base_22k_1k_384.pth", "convnext_base", 1000, "fb_in22k_ft_in1k_384"),
        ("convnext_base_1k_384.pth", "convnext_base", 1000, "fb_in1k_384"),
        ("convnext_iso_small_1k_224_ema.pth", "convnext_isotropic_small", 1000, "fb_in1k"),
        ("convnextv2_atto_1k_224_ema.pt", "convnextv2_atto", 1000, "fcmae_ft_in1k"),
        ("convnextv2_tiny_22k_224_ema.pt", "convnextv2_tiny", 1000, "fcmae_ft_in22k_in1k"),
        ("convnextv2_huge_1k_224_fcmae.pt", "convnextv2_huge", 0, "fcmae"),
        (
            "dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth",
            "convnext_tiny",
            0,
            "dinov3_lvd1689m",
        ),
        ("hf-hub:facebook/convnext-tiny-224", "convnext_tiny", 1000, "fb_in1k"),
        ("hf-hub:facebook/convnextv2-tiny-1k-224@main", "convnextv2_tiny", 1000, "fcmae_ft_in1k"),
        ("hf-hub:timm/convnext_nano.in12k", "convnext_nano", 11821, "in12k"),
        ("convnext_atto.d2_in1k.safetensors", "convnext_atto", 1000, "d2_in1k"),
    ],
)
def test_published_names(name, model, classes, tag):
    found = published.find_published(name, model, classes)
    assert found == (PRETRAINED | NOT_ON_HUB)[f"{model}.{tag}"]
    # Fine-tuned for something else, under the same name.
    assert published.find_published(name, model, 7) is None
    assert published.find_published(name, "convnext_femto", classes) is None


def test_licences():
    for name, licence in [
        ("facebook", None),
        ("dinov3", "dinov3-license"),
        ("dinov3, EUPE", "fair-noncommercial-research-license"),
        ("facebook, FCMAE encoder", "CC-BY-NC-4.0"),
        ("hf_dinov3, ", "dinov3-license"),
    ]:
        assert published.licence_of(None, DIALECT[name], {}) == licence
    known = get_pretrained("convnext_tiny.fb_in1k")
    # timm's copies say Apache-2.0, their authors MIT.
    settings = {"config.json": {"pretrained_cfg": {"license": "apache-2.0"}}}
    assert published.licence_of(known, DIALECT["timm"], settings) == "MIT"
    assert published.licence_of(None, DIALECT["timm"], settings) == "apache-2.0"
    assert set(published._LICENCES) <= set(DIALECT)


def feed(settings, model="convnext_tiny", known=None, dialect="timm"):
    return published.preprocessing_of(model, known, DIALECT[dialect], settings)


def test_preprocessing_in_order_of_precedence():
    assert feed({}).input_size == 224 and feed({}).crop_fraction == 224 / 256
    known = get_pretrained("convnext_tiny.in12k_ft_in1k_384")
    assert feed({}, known=known).input_size == 384
    said = {"input_size": [3, 96, 96], "crop_pct": 0.8, "crop_mode": "center", "std": [0.1] * 3}
    settings = {"config.json": {"pretrained_cfg": said}}
    assert feed(settings, known=known).input_size == 96
    assert feed(settings, known=known).std == (0.1, 0.1, 0.1)
    assert feed({}, dialect="openclip, linear projection").mean[0] == pytest.approx(
        0.4815, abs=1e-4
    )
    assert feed({}, dialect="dinov3").mean[0] == 0.485


@pytest.mark.parametrize("model", ["convnext_tiny", "convnext_small", "convnext_base", "resnet50"])
def test_torchvisions_files_are_fed_as_torchvision_does(model):
    """By its own list of weights, and pixel by pixel."""
    ours = model.replace("resnet50", "roadmap_resnet50_original")
    dialect = DIALECT["torchvision, ResNet" if "resnet" in model else "torchvision"]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), np.uint8))
    for weights in torchvision.models.get_model_weights(model):
        fed = published.preprocessing_of(ours, None, dialect, {}, weights.url)
        theirs = weights.transforms()
        assert int(fed.input_size / fed.crop_fraction) == theirs.resize_size[0]
        assert fed.interpolation == theirs.interpolation.value == "bilinear"
        pixels = torch.tensor(Preprocess(fed)(image)).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (fed.mean, fed.std))
        # uint8 pixels on both sides.
        torch.testing.assert_close((pixels - mean) / std, theirs(image), rtol=0, atol=1e-6)
    elsewhere = published.preprocessing_of(ours, None, dialect, {}, "mine.pth")
    assert elsewhere == published.preprocessing_of(ours, None, dialect, {})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"shortest_edge": 288}, "crop_pct": 0.9, "resample": 2}, (288, 0.9, "center")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.9}, (384, 1.0, "squash")),
        ({"size": 224, "crop_pct": 0.875}, (224, 0.875, "center")),
        ({"size": {"height": 256, "width": 256}}, (256, 1.0, "squash")),
    ],
)
def test_preprocessing_of_hugging_face(said, expected):
    found = feed({"preprocessor_config.json": said})
    assert (found.input_size, found.crop_fraction, found.crop_mode) == expected
    assert found.interpolation == ("bilinear" if "resample" in said else "bicubic")


def test_class_names():
    labels = {"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}
    settings = {"config.json": {"id2label": labels}}
    assert published.class_names_of(settings, 11) == tuple("abcdefghijk")
    assert published.class_names_of(settings, 0) is None
    assert published.class_names_of({}, 11) is None
    placeholders = {"config.json": {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}}
    assert published.class_names_of(placeholders, 2) is None
    with pytest.raises(InputError, match="names 11 classes, but the weights are for 3"):
        published.class_names_of(settings, 3)


def test_settings_of_another_computation():
    published.check_settings({"config.json": {"hidden_act": "gelu"}}, "convnext_tiny", {})
    for config in ({"hidden_act": "relu"}, {"model_args": {"norm_eps": 1e-5}}):
        with pytest.raises(InputError, match="but convnext_tiny has"):
            published.check_settings({"config.json": config}, "convnext_tiny", {})
