"""Predictor against direct calls of the model, and against timm with the same weights."""

import dataclasses

import jax
import numpy as np
import pytest
from classification.small import (
    FEEDING,
    NAMES,
    PHOTOGRAPHS,
    SPEC,
    compiled,
    crops,
    model_with,
    photographs,
)
from classification.small import small_params as params
from oracles import timm, torch
from PIL import Image
from random_models import with_values
from torch_weights import randomise, renamed

from convnext_jax.classification.predictor import Failure, Prediction, Predictor
from convnext_jax.classification.preprocess import Preprocess
from convnext_jax.data.normalize import normalize
from convnext_jax.errors import InputError, RunError
from convnext_jax.models.convnext import ConvNeXt
from convnext_jax.models.registry import get_pretrained
from convnext_jax.models.spec import ModelSpec

# Both sides compute in float32, in batches and on devices of other sizes, so that sums are taken in
# another order: 1e-6 relative was seen, for the smallest probabilities 1e-5.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def predictor():
    return Predictor(model_with(SPEC, params()), FEEDING, NAMES, batch_size=8)


@pytest.fixture
def traces(monkeypatch):
    """The batch sizes of the model's calls; in compiled functions, those at which they trace it."""
    seen = []
    call = ConvNeXt.__call__

    def counted(self, images, key=None):
        seen.append(images.shape[0])
        return call(self, images, key)

    monkeypatch.setattr(ConvNeXt, "__call__", counted)
    return seen


def directly(images, headless=False):
    """Logits or embeddings, image by image, without Predictor and batches."""
    model = model_with(SPEC, params())
    if headless:
        tree = {name: value for name, value in params().items() if name != "head"}
        model = model_with(dataclasses.replace(SPEC, num_classes=0), tree)
    preprocess = Preprocess(FEEDING)
    rows = [normalize(preprocess(x)[None], FEEDING.mean, FEEDING.std) for x in images]
    return np.concatenate(list(map(compiled(model), rows)))


def test_predictions_are_the_models_in_order_with_the_last_batch_padded(predictor):
    images = crops(19)
    expected = jax.nn.softmax(directly(images))
    results = predictor.predict(images, top=3)
    assert len(results) == 19
    for result, row in zip(results, np.asarray(expected), strict=True):
        assert isinstance(result, Prediction)
        assert result.labels == tuple(np.argsort(-row)[:3])
        assert result.names == tuple(NAMES[label] for label in result.labels)
        np.testing.assert_allclose(result.probabilities, row[list(result.labels)], **CLOSE)
    # What makes the comparison mean something.
    assert len({result.probabilities for result in results}) == 19
    assert len({result.labels[0] for result in results}) > 1


def test_embeddings_are_those_of_the_model_without_a_head(predictor):
    images = crops(9)
    vectors, errors = predictor.embed(images)
    assert vectors.shape == (9, 16) and vectors.dtype == np.float32 and errors == {}
    np.testing.assert_allclose(vectors, directly(images, headless=True), **CLOSE)
    assert predictor.embedding_size == 16
    # The head is still there.
    assert len(predictor.predict(images[:1])[0].labels) == 5


@pytest.fixture(scope="module")
def with_timm():
    """A tag's model with random weights, in timm and as Predictor; timm's pixels of the images."""
    name = "test_convnext2.r160_in1k"
    oracle = timm.create_model(name, pretrained=False).eval()
    randomise(oracle, seed=3)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(oracle))
    spec = ModelSpec("test_convnext2", 1000)
    weights = with_values(spec.abstract_params(), renamed(oracle.state_dict(), "timm"))
    images = photographs()
    batch = torch.stack([transform(image) for image in images])
    predictor = Predictor(model_with(spec, weights), get_pretrained(name), batch_size=8)
    return oracle, batch, predictor, images


def test_the_whole_way_from_image_to_probabilities_is_timms(with_timm):
    oracle, batch, predictor, images = with_timm
    with torch.no_grad():
        expected = oracle(batch).softmax(dim=1)
    values, labels = expected.topk(5)
    names = timm.data.ImageNetInfo().label_descriptions()
    for i, result in enumerate(predictor.predict(images)):
        assert result.labels == tuple(labels[i].tolist())
        np.testing.assert_allclose(result.probabilities, values[i].numpy(), **CLOSE)
        for label, name in zip(result.labels, result.names, strict=True):
            assert name.partition(" (")[0] in names[label].split(", ")


def test_embeddings_are_timms_features_before_the_head(with_timm):
    oracle, batch, predictor, images = with_timm
    with torch.no_grad():
        expected = oracle.forward_head(oracle.forward_features(batch), pre_logits=True).numpy()
    vectors, _ = predictor.embed(images)
    # Values are of order 1: normalised.
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, size, overrides",
    [
        ("convnext_isotropic_small", 8, {"depths": (1,), "dims": (8,)}),
        ("convnext_tiny_hnf", 16, {}),
        ("convnext_large_mlp", 20, {"head_hidden_size": 20}),
        ("convnextv2_atto", 16, {}),
    ],
)
def test_embeddings_of_every_architecture(name, size, overrides):
    spec = ModelSpec(name, 5, {**SPEC.overrides, **overrides})
    values = params(spec=spec)
    headless = model_with(
        dataclasses.replace(spec, num_classes=0), {n: v for n, v in values.items() if n != "head"}
    )
    vectors, _ = Predictor(model_with(spec, values), FEEDING).embed(PHOTOGRAPHS)
    again, _ = Predictor(headless, FEEDING).embed(PHOTOGRAPHS)
    np.testing.assert_array_equal(vectors, again)
    assert vectors.shape == (2, size)


def test_bad_images_have_failures_in_their_places(predictor, tmp_path):
    good = crops(11)
    paths = []
    for i, image in enumerate(good):
        image.save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_text("no image")
    mixed = [*paths[:5], tmp_path / "bad.png", *paths[5:9], Image.new("L", (0, 3)), *paths[9:]]
    results = predictor.predict(mixed)
    assert results[5] == Failure(f"{tmp_path}/bad.png: it is no image of a kind that PIL knows")
    assert isinstance(results[10], Failure) and results[10].error.startswith("image 10: ")
    fine = [result for result in results if not isinstance(result, Failure)]
    # In other rows of their batches, which are computed by other devices, but with the same code.
    for result, expected in zip(fine, predictor.predict(good), strict=True):
        assert result.labels == expected.labels
        np.testing.assert_allclose(result.probabilities, expected.probabilities, **CLOSE)
    vectors, errors = predictor.embed(mixed)
    assert list(errors) == [5, 10] and errors[5] == results[5].error
    assert np.isnan(vectors[[5, 10]]).all()
    assert np.isfinite(np.delete(vectors, [5, 10], axis=0)).all()


def test_nothing_and_nothing_but_failures(predictor):
    assert predictor.predict([]) == []
    assert predictor.embed([])[0].shape == (0, 16)
    vectors, errors = predictor.embed(["absent.png"])
    assert vectors.shape == (1, 16) and errors == {0: "absent.png: there is no such file"}


def test_compiled_once_for_each_size(traces):
    # With eight devices sizes are multiples of eight.
    predictor = Predictor(model_with(SPEC, params()), FEEDING, batch_size=30)
    for count in (1, 3, 8, 5, 2):
        predictor.predict(crops(count))
    assert traces == [8]
    predictor.predict(crops(11))
    predictor.predict(crops(16))
    assert traces == [8, 16]
    for count in (20, 30, 33, 70):
        predictor.predict(crops(count))
    assert traces == [8, 16, 32]
    list(predictor.embeddings(crops(40)))
    list(predictor.embeddings(crops(50)))
    assert traces == [8, 16, 32, 32]


def test_images_are_taken_only_some_batches_ahead(predictor):
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield PHOTOGRAPHS[0]

    results = predictor.predictions(endless())
    assert len(next(results).labels) == 5
    assert len(taken) <= 5 * 8
    results.close()


def test_names_and_top():
    model = model_with(SPEC, params())
    (result,) = Predictor(model, FEEDING).predict(PHOTOGRAPHS[:1], top=100)
    assert sorted(result.labels) == list(range(7))
    assert result.names == tuple(map(str, result.labels))
    assert sum(result.probabilities) == pytest.approx(1, abs=1e-6)  # float32
    assert list(result.probabilities) == sorted(result.probabilities, reverse=True)
    wordnet = ["n01440764", "n01443537", "a", "b", "c", "d", "e"]
    (result,) = Predictor(model, FEEDING, wordnet).predict(PHOTOGRAPHS[:1], top=7)
    assert set(result.names) == {"tench", "goldfish", *"abcde"}


def test_a_bfloat16_model_has_float32_results():
    spec = dataclasses.replace(SPEC, overrides={**SPEC.overrides, "dtype": "bfloat16"})
    (result,) = Predictor(model_with(spec, params()), FEEDING).predict(PHOTOGRAPHS[:1], top=7)
    expected = np.asarray(jax.nn.softmax(directly(PHOTOGRAPHS[:1])))[0]
    # bfloat16 has 8 bits, so logits of order 1 are off by some 1e-2; the softmax, were it rounded
    # too, would not sum to 1.
    np.testing.assert_allclose(result.probabilities, expected[list(result.labels)], atol=0.05)
    assert sum(result.probabilities) == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_done():
    model = model_with(SPEC, params())
    with pytest.raises(InputError, match=r"`class_names` \(=2\).*\(=7\)"):
        Predictor(model, FEEDING, ["a", "b"])
    with pytest.raises(InputError, match=r"`batch_size` \(=0\)"):
        Predictor(model, FEEDING, batch_size=0)
    with pytest.raises(InputError, match=r"`top` \(=0\)"):
        Predictor(model, FEEDING).predictions([], top=0)
    with pytest.raises(TypeError, match="a list of paths"):
        Predictor(model, FEEDING).predict("photo.jpg")
    one_channel = ModelSpec(SPEC.name, 7, {**SPEC.overrides, "in_channels": 1})
    with pytest.raises(InputError, match=r"`in_channels` \(=1\) must be 3"):
        Predictor(model_with(one_channel, params(spec=one_channel)), FEEDING)
    headless = dataclasses.replace(SPEC, num_classes=0)
    with pytest.raises(InputError, match="no head"):
        Predictor(model_with(headless, params(spec=headless)), FEEDING).predict(PHOTOGRAPHS)
    broken = params()
    broken["norm"]["bias"][0] = np.nan
    with pytest.raises(RunError, match="must be finite"):
        Predictor(model_with(SPEC, broken), FEEDING).predict(PHOTOGRAPHS)
