"""The published UPerNets themselves, where they are.

They are looked for in the folder that `CONVNEXT_JAX_PUBLISHED` names: Facebook's and
mmsegmentation's files by their names, Hugging Face's repositories as folders such as
`upernet-convnext-tiny`, and the image ADE_val_00000001.jpg of its `fixtures_ade20k`.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.datasets
import upernet_originals as originals
from flax import nnx
from oracles import torch
from PIL import Image
from transformers import SegformerImageProcessorPil

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.convert.__main__ import main
from convnext_jax.convert.loading import load
from convnext_jax.segmentation.resize import resize
from convnext_jax.weights.load import load_pretrained

VARIABLE = "CONVNEXT_JAX_PUBLISHED"
IMAGE = "ADE_val_00000001.jpg"

# Logits of the first class in the upper left of that image, as transformers' conversion of
# mmsegmentation's weights checked them (bf3e4ce0, `convert_convnext_upernet_to_pytorch.py`). The
# second row is the first again.
GOLDEN = {
    "tiny": [(-8.8110, -8.8110, -8.6521), (-8.7746, -8.7746, -8.6130)],
    "small": [(-8.8236, -8.8236, -8.6771), (-8.7638, -8.7638, -8.6240)],
    "base": [(-8.8558, -8.8558, -8.6905), (-8.7669, -8.7669, -8.6021)],
    "large": [(-8.6660, -8.6660, -8.6210), (-8.6310, -8.6310, -8.5964)],
    "xlarge": [(-8.4980, -8.4980, -8.3977), (-8.4379, -8.4379, -8.3412)],
}
FILES = [
    *(f"upernet_convnext_{size}_1k_512x512.pth" for size in ("tiny", "small", "base")),
    *(f"upernet_convnext_{size}_22k_640x640.pth" for size in ("base", "large", "xlarge")),
    "upernet_convnext_tiny_fp16_512x512_160k_ade20k_20220227_124553-cad485de.pth",
]


def corner(model, image):
    """The first class's logits in the upper left, of an image fed as Hugging Face feeds it."""
    pixels = np.asarray(image.convert("RGB").resize((512, 512), Image.Resampling.BILINEAR))
    x = (pixels / np.float32(255) - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    graph, state = nnx.split(model)
    decode = jax.jit(lambda state, x: nnx.merge(graph, state)(x).decode)
    return np.asarray(resize(decode(state, np.float32(x)[None]), 512, 512))[0, :3, :3, 0]


def test_this_is_how_hugging_face_computes_them(tmp_path):
    theirs = originals.small()
    theirs.save_pretrained(tmp_path)
    image = Image.fromarray(sklearn.datasets.load_sample_images().images[0])
    with torch.no_grad():
        pixels = SegformerImageProcessorPil()(image, return_tensors="pt").pixel_values
        expected = theirs(pixels).logits[0, 0, :3, :3].numpy()
    found = corner(load_pretrained(tmp_path), image)
    # float32 sums in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected) > 1e-2 * np.abs(expected).max()


def published(name):
    folder = os.environ.get(VARIABLE)
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip(f"{name} is not in the folder that {VARIABLE} names")
    return Path(folder) / name


@pytest.mark.slow
@pytest.mark.parametrize("size", GOLDEN)
def test_logits_of_published_weights(size):
    source, image = published(f"upernet-convnext-{size}"), published(IMAGE)
    first, last = GOLDEN[size]
    # Theirs have four digits behind the point, and were computed on another machine.
    np.testing.assert_allclose(
        corner(load_pretrained(source), Image.open(image)), [first, first, last], atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_published_files_and_back(name, tmp_path):
    source = published(name)
    converted = load(str(source))
    assert converted.preprocessing.input_size == (640 if "640" in name else 512)
    assert converted.num_classes == 150 and converted.overrides == {}
    format = "mmseg" if "fp16" in name else "facebook"
    assert converted.format == format
    main([str(source), str(tmp_path / "back.pth"), "--to", format])
    state = torch.load(source, map_location="cpu", weights_only=True)["state_dict"]
    again = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert again.keys() | state.keys() == again.keys()
    for tensor in state:
        if not tensor.endswith("num_batches_tracked"):
            assert torch.equal(again[tensor], state[tensor]), tensor
