"""The training step against PyTorch and timm, with a model small enough to write down twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_models import stateless

from convnext_jax.classification.loss import cross_entropy
from convnext_jax.constants import IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.training.state import TrainState
from convnext_jax.training.step import METRICS, make_train_step

CLASSES = 5


def apply(params, images, key=None):
    """A linear classifier on the mean colour; `key` shifts the logits, so that it shows."""
    logits = images.mean(axis=(1, 2)) @ params["kernel"] + params["bias"].reshape(1, -1)
    return logits if key is None else logits + 0 * jax.random.normal(key, (1, CLASSES))


def noisy_apply(params, images, key=None):
    return apply(params, images) + jax.random.normal(key, (1, CLASSES))


def parameters():
    rng = np.random.default_rng(0)
    return {
        "kernel": jnp.asarray(rng.normal(size=(3, CLASSES)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=CLASSES), jnp.float32),
    }


def batch(seed=0, size=8):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 4, 4, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
    }


def start(optimizer, ema=True):
    params = parameters()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=parameters() if ema else None,
        opt_state=optimizer.init(params),
    )


def build(function=apply, optimizer=None, learning_rate=0.5, label_smoothing=0.0, **options):
    optimizer = optimizer or optax.sgd(learning_rate)
    loss = cross_entropy(
        stateless(function),
        CLASSES,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        label_smoothing=label_smoothing,
    )
    step = make_train_step(
        loss, optimizer, lambda step: jnp.float32(learning_rate), seed=7, **options
    )
    return jax.jit(step), optimizer


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_gradient_update_and_ema_equal_torchs(smoothing):
    from oracles import timm, torch

    step, optimizer = build(label_smoothing=smoothing, ema_decay=0.9)
    state = start(optimizer)

    model = torch.nn.Linear(3, CLASSES)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(np.asarray(state.params["kernel"]).T))
        model.bias.copy_(torch.tensor(np.asarray(state.params["bias"])))
    peer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = timm.utils.ModelEmaV2(model, decay=0.9)
    criterion = (
        timm.loss.LabelSmoothingCrossEntropy(smoothing)
        if smoothing
        else torch.nn.CrossEntropyLoss()
    )
    mean, std = (torch.tensor(x) for x in (IMAGENET_MEAN, IMAGENET_STD))
    for number in range(3):
        examples = batch(number)
        state, metrics = step(state, examples)
        images = torch.tensor(np.asarray(examples["image"])).float() / 255
        logits = model(((images - mean) / std).mean(dim=(1, 2)))
        loss = criterion(logits, torch.tensor(np.asarray(examples["label"])).long())
        peer.zero_grad()
        loss.backward()
        gradient_norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        peer.step()
        average.update(model)
        norm = torch.cat([p.detach().flatten() for p in model.parameters()]).norm()
        found = dict(zip(METRICS, np.asarray(metrics).tolist(), strict=True))
        expected = {
            "loss": loss.item(),
            "learning_rate": 0.5,
            "gradient_norm": gradient_norm.item(),
            "parameter_norm": norm.item(),
            "update_norm": 0.5 * gradient_norm.item(),
        }
        for name, value in expected.items():
            # Sums of at most 128 float32 terms in another order.
            assert found[name] == pytest.approx(value, rel=2e-6), name
        for ours, theirs in ((state.params, model), (state.ema, average.module)):
            np.testing.assert_allclose(
                ours["kernel"], theirs.weight.detach().numpy().T, rtol=0, atol=2e-6
            )
            np.testing.assert_allclose(
                ours["bias"], theirs.bias.detach().numpy(), rtol=0, atol=2e-6
            )
    assert state.step == 3


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    whole, optimizer = build()
    expected, expected_metrics = whole(start(optimizer, ema=False), batch())
    for parts in (2, 4, 8):
        step, _ = build(accumulation_steps=parts)
        found, metrics = step(start(optimizer, ema=False), batch())
        # The same sums in another order.
        np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-6)
        np.testing.assert_allclose(found.params["kernel"], expected.params["kernel"], atol=1e-6)
        assert found.step == 1


def test_randomness_follows_from_seed_step_and_micro_batch():
    step, optimizer = build(noisy_apply, learning_rate=0.0)
    state = start(optimizer, ema=False)
    _, first = step(state, batch())
    _, again = step(state, batch())
    np.testing.assert_array_equal(first, again)
    later = TrainState(jnp.int32(1), state.params, None, state.opt_state)
    assert step(later, batch())[1][0] != first[0]

    # With a batch that repeats itself, only the key can tell the micro-batches apart.
    half = batch(size=4)
    twice = {name: jnp.repeat(x, 2, axis=0) for name, x in half.items()}
    parts, _ = build(noisy_apply, learning_rate=0.0, accumulation_steps=2)
    _, metrics = parts(state, twice)
    key = jax.random.fold_in(jax.random.key(7), 0)
    losses = []
    for index in range(2):
        images = (half["image"] / 255 - np.float32(IMAGENET_MEAN).reshape(1, 1, 1, 3)) / np.float32(
            IMAGENET_STD
        ).reshape(1, 1, 1, 3)
        model_key, _, _ = jax.random.split(jax.random.fold_in(key, index), 3)
        logits = noisy_apply(state.params, images, model_key)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, half["label"])
        losses.append(float(loss.mean()))
    assert losses[0] != losses[1]
    assert float(metrics[0]) == pytest.approx(np.mean(losses), rel=1e-6)  # float32 sums


def test_splitting_a_sharded_batch_moves_nothing_between_devices():
    from convnext_jax import sharding
    from convnext_jax.training.step import _split

    mesh = sharding.create_mesh(fsdp=2)
    placed = jax.ShapeDtypeStruct((32, 4), jnp.float32, sharding=sharding.batch_sharding(mesh))
    text = jax.jit(lambda x: _split(x, 2) * 2).lower(placed).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text
