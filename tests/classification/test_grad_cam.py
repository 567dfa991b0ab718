"""Grad-CAM beside PyTorch's gradients, and what `predict --cam` writes."""

import numpy as np
import pytest
from classification.small import FEEDING, NAMES, PHOTOGRAPHS, SPEC, model_with, save, small_params
from oracles import timm, torch
from PIL import Image
from random_models import random_images, with_values
from torch_weights import randomise, renamed

import convnext_jax
from convnext_jax import predict
from convnext_jax.classification.grad_cam import overlay
from convnext_jax.classification.predictor import Explanation, Failure, Predictor
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelSpec

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}


def theirs(model, images, labels):
    """As the paper has it, from the gradients of timm's model: [N, h, w]."""
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept["map"] = output

    model.stages[-1].register_forward_hook(keep)
    logits = model(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    labels = logits.argmax(1) if labels is None else torch.tensor(labels)
    logits[range(len(labels)), labels].sum().backward()
    features, gradients = kept["map"], kept["map"].grad
    weights = gradients.mean((2, 3), keepdim=True)
    maps = torch.relu((weights * features).sum(1)).detach().numpy()
    return maps / maps.max((1, 2), keepdims=True)


@pytest.mark.parametrize("labels", [None, np.array([4, 0, 2])])
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_maps_are_those_of_pytorchs_gradients(name, labels):
    oracle = timm.create_model(name, num_classes=5, **SMALL).eval()
    randomise(oracle, seed=1)
    spec = ModelSpec(name, 5, SMALL)
    params = with_values(spec.abstract_params(), renamed(oracle.state_dict(), "timm"))
    # Not square: heights and widths are not mixed up.
    images = random_images(3, 96, 160, 3)
    found = np.asarray(convnext_jax.grad_cam(model_with(spec, params), images, labels))
    expected = theirs(oracle, images, labels)
    assert found.shape == expected.shape == (3, 3, 5)
    assert found.max() == 1 and expected.std() > 0.1
    # Sums of some ten products, in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_heads_that_normalise_first_have_a_gradient_at_each_place():
    """The mean of the gradient of the whole of what follows, by finite differences in float64."""
    spec = ModelSpec("convnext_atto", 5, SMALL | {"head_norm_first": True})
    model = model_with(spec, small_params(0, spec))
    images = random_images(2, 64, 96, 3)
    last = np.asarray(model.features(images)[-1], np.float64)
    norm, head = model.norm_pre, model.head

    def logits(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.epsilon)
        x = x * np.asarray(norm.scale[...], np.float64) + np.asarray(norm.bias[...], np.float64)
        kernel, bias = np.asarray(head.kernel[...]), np.asarray(head.bias[...])
        return x.mean((1, 2)) @ kernel.astype(np.float64) + bias

    labels, step = np.array([1, 3]), 1e-6
    weights = np.zeros((2, 1, 1, last.shape[-1]))
    for channel in range(last.shape[-1]):
        moved = np.zeros_like(last)
        moved[..., channel] = step
        slope = (logits(last + moved) - logits(last - moved)) / (2 * step)
        weights[:, 0, 0, channel] = slope[[0, 1], labels]
    expected = np.maximum((weights * last).sum(-1), 0)
    expected /= expected.max((1, 2), keepdims=True)
    found = convnext_jax.grad_cam(model, images, labels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_map_with_nothing_for_the_class_is_zeros():
    params = small_params()
    params["head"]["kernel"] = np.zeros_like(params["head"]["kernel"])
    found = convnext_jax.grad_cam(model_with(SPEC, params), random_images(1, 64, 64, 3))
    np.testing.assert_array_equal(found, np.zeros((1, 2, 2)))


def test_what_cannot_be_explained():
    images = random_images(2, 64, 64, 3)
    model = model_with(SPEC, small_params())
    for labels, sentence in (([1], "must be 2 whole numbers"), ([0, 7], "must lie in 0..6")):
        with pytest.raises(InputError, match=sentence):
            convnext_jax.grad_cam(model, images, labels)
    model.head = None
    with pytest.raises(InputError, match="must have a head"):
        convnext_jax.grad_cam(model, images)


def test_an_overlay_is_the_image_where_the_map_is_zero():
    image = PHOTOGRAPHS[0].resize((60, 40))
    np.testing.assert_array_equal(overlay(image, np.zeros((2, 3))), image)
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0] = 1
    seen, before = np.asarray(overlay(image, heat)).astype(int), np.asarray(image).astype(int)
    changed = abs(seen - before).sum(-1)
    assert changed[:5, :5].min() > 0 and changed[20:].max() == changed[:, 30:].max() == 0


def test_explanations_are_predictions_and_maps():
    model = model_with(SPEC, small_params())
    predictor = Predictor(model, FEEDING, NAMES, batch_size=2)
    images = [*PHOTOGRAPHS, "missing.jpg", PHOTOGRAPHS[0].resize((80, 300))]
    plain = predictor.predict(images, 3)
    explained = list(predictor.explanations(images, 3))
    assert isinstance(explained[2], Failure) and explained[2] == plain[2]
    for found, prediction in zip(explained, plain, strict=True):
        if isinstance(found, Failure):
            continue
        assert isinstance(found, Explanation) and found.prediction.labels == prediction.labels
        np.testing.assert_allclose(
            found.prediction.probabilities, prediction.probabilities, rtol=1e-5
        )
        pixels = np.asarray(found.seen, np.float32) / 255
        normalised = (pixels - np.array(FEEDING.mean)) / np.array(FEEDING.std)
        expected = convnext_jax.grad_cam(model, normalised[None].astype(np.float32))
        np.testing.assert_allclose(found.heat, expected[0], rtol=0, atol=1e-4)


def test_predict_writes_overlays(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", {1: ({"params": small_params()}, {})})
    folder = tmp_path / "photos"
    (folder / "inside").mkdir(parents=True)
    PHOTOGRAPHS[0].save(folder / "one.png")
    PHOTOGRAPHS[1].save(folder / "inside" / "two.png")
    (folder / "broken.png").write_bytes(b"nothing")
    arguments = [str(folder), "--checkpoint", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        predict.main([*arguments, "--cam", str(tmp_path / "cam")])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.err and "two.png" in captured.out
    written = sorted(p.relative_to(tmp_path / "cam") for p in (tmp_path / "cam").rglob("*.*"))
    assert [str(path) for path in written] == ["inside/two_cam.png", "one_cam.png"]
    assert Image.open(tmp_path / "cam" / "one_cam.png").size == (64, 64)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit) as ended:
        predict.main([*arguments, "--cam", str(file)])
    assert ended.value.code == 2
    assert "`--cam` (=" in capsys.readouterr().err
