"""Models as ONNX, run by ONNX Runtime."""

import collections
import functools

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from export.families import SPECS, side_of, variables
from random_models import random_images

from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.export import graph
from convnext_jax.export.fold import fold
from convnext_jax.export.onnx import onnx_files
from convnext_jax.models.spec import ModelSpec
from convnext_jax.models.variants import Preprocessing
from convnext_jax.tree import map_with_names

COUNTS = (1, 3, 4)
HALF = {"dtype": "float16"}


@functools.cache
def images_and_logits(name):
    """Images, and what our model makes of them."""
    spec = SPECS[name]
    side = side_of(spec)
    images = random_images(max(COUNTS), side, side, spec.overrides.get("in_channels", 3))
    return np.asarray(images), ours(spec, *variables(spec), images)


def ours(spec, params, stats, images):
    outputs, _ = jax.jit(spec.function_with_batch_stats())(params, stats, images)
    return np.asarray(getattr(outputs, "decode", outputs))


def run(model, images):
    """Runs a file, or its content, on images [N, H, W, C]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    assert found.dtype == np.float32
    return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found


def written(spec, params, stats):
    files, shape = onnx_files(spec, params, stats, side_of(spec), "0.1")
    assert list(files) == ["model.onnx"] and shape[0] == "n"
    return files["model.onnx"]


@pytest.mark.parametrize("kind", ["plain", "folded"])
@pytest.mark.parametrize("name", SPECS)
def test_logits_are_ours(name, kind):
    images, expected = images_and_logits(name)
    # One that does not depend on its images would be equal to any other.
    assert expected.std(0).max() > 0.05 * abs(expected).max()
    params, stats = variables(SPECS[name])
    model = written(SPECS[name], fold(params)[0] if kind == "folded" else params, stats)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    for count in COUNTS:
        found = run(model, images[:count])
        assert found.shape == expected[:count].shape
        # Sums in another order: 7e-7 is seen.
        atol = 1e-5 * float(abs(expected).max())
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["V1", "V2", "isotropic", "segmentation"])
def test_pixels_may_be_folded_in(name):
    images, _ = images_and_logits(name)
    params, stats = variables(SPECS[name])
    pixels = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.float32)
    normalised = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    expected = ours(SPECS[name], params, stats, normalised.astype(np.float32))
    folded, takes_pixels = fold(params, Preprocessing())
    assert takes_pixels
    found = run(written(SPECS[name], folded, stats), pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))


def operations(model):
    return collections.Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


def test_operations_are_those_that_run_times_know():
    """A norm is one operation, not a sum of squares, which float16 cannot hold."""
    found = operations(written(SPECS["V1"], *variables(SPECS["V1"])))
    assert found == {
        "Conv": 1 + 3 + 4,  # stem, downsampling, depthwise
        "LayerNormalization": 1 + 3 + 4 + 1,
        "MatMul": 8 + 1,
        "Gelu": 4,
        "Mul": 4,  # layer scale
        "Add": 8 + 4 + 1,  # biases, residual paths, the head
        # Around each block; what downsampling convolves is what its first block does.
        "Transpose": 1 + 2 + 3 * (1 + 2),
        "ReduceMean": 1,
        "Identity": 1,
    }
    folded = operations(written(SPECS["V1"], fold(variables(SPECS["V1"])[0])[0], {}))
    assert folded == {name: count for name, count in found.items() if name != "Mul"}
    model = onnx.load_from_string(written(SPECS["V1"], *variables(SPECS["V1"])))
    groups = [
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert groups == [1, 8, 1, 12, 1, 16, 1, 20]
    assert model.opset_import[0].version == 20


@pytest.mark.parametrize("name", ["V1", "V2", "simple norm", "segmentation"])
def test_float16_holds_large_activations(name):
    """Residual streams of hundreds, whose squares are beyond 65504."""
    spec = SPECS[name]
    params, stats = variables(spec)
    stem = "backbone/" * (name == "segmentation") + "downsample_layers/0/1/"

    def enlarged(name, array):
        return array * np.float32(600) if name in (f"{stem}scale", f"{stem}bias") else array

    params = map_with_names(enlarged, params)
    images, _ = images_and_logits(name)
    expected = ours(spec, params, stats, images)
    half = ModelSpec(spec.name, spec.num_classes, {**spec.overrides, **HALF})
    model = written(half, params, stats)
    kinds = {
        tensor.data_type
        for tensor in onnx.load_from_string(model).graph.initializer
        if "kernel" in tensor.name and "head" not in tensor.name and "conv_seg" not in tensor.name
    }
    assert kinds == {onnx.TensorProto.FLOAT16}
    found = run(model, images)
    # Rounding to 11 bits, 5e-4 each time, some twenty times in turn.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * float(abs(expected).max()))


def test_weights_beyond_a_protocol_buffer_lie_beside_it(monkeypatch, tmp_path):
    images, expected = images_and_logits("V1")
    monkeypatch.setattr(graph, "_LARGEST", 1)
    files, _ = onnx_files(SPECS["V1"], *variables(SPECS["V1"]), 64, "0.1")
    assert set(files) == {"model.onnx", "model.onnx.data"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert len(files["model.onnx.data"]) > 10000
    found = run(tmp_path / "model.onnx", images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))


def test_the_same_model_gives_the_same_bytes():
    spec = SPECS["V2"]
    assert written(spec, *variables(spec)) == written(spec, *variables(spec))
