"""Parameters that keep their values, beside torch's `requires_grad = False`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch
from random_models import functional, random_params, stateless

from convnext_jax import tree
from convnext_jax.classification.loss import cross_entropy
from convnext_jax.errors import InputError
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.param_groups import trained
from convnext_jax.training.state import initial_state
from convnext_jax.training.step import make_train_step

CLASSES, STEPS, RATE, DECAY = 5, 3, 0.01, 0.1
SMALL = {"depths": (1, 1), "dims": (8, 16)}
APPLY, SHAPES = functional("convnext_atto", num_classes=CLASSES, **SMALL)


def frozen_names(freeze, shapes=SHAPES):
    return {
        name
        for name, moves in tree.flatten_with_names(trained(shapes, freeze)).items()
        if not moves
    }


def test_a_backbone_is_all_but_the_heads():
    everything = set(tree.flatten_with_names(SHAPES))
    assert frozen_names("backbone") == everything - {"head/kernel", "head/bias"}
    assert frozen_names("") == set()
    beside = ("decode_head", "auxiliary_head", "backbone")
    shapes = {name: {"kernel": jax.ShapeDtypeStruct((1,), jnp.float32)} for name in beside}
    assert frozen_names("backbone", shapes) == {"backbone/kernel"}


def test_names_are_whole_parts():
    first = {name for name in tree.flatten_with_names(SHAPES) if name.startswith("stages/0/")}
    assert first and frozen_names("stages/0") == first
    both = frozen_names("stages/0, downsample_layers/0/")
    assert both > first and all(n.startswith(("stages/0/", "downsample_layers/0/")) for n in both)


@pytest.mark.parametrize(
    "freeze, fragment",
    [
        ("stage", "none begins with stage; they begin with downsample_layers, head, norm, stages"),
        ("head,norm,stages,downsample_layers", "must leave something to train"),
        (" , ", "must name what is frozen, or be empty"),
    ],
)
def test_what_cannot_be_frozen(freeze, fragment):
    with pytest.raises(InputError, match=r"`optim.freeze` \(=") as caught:
        trained(SHAPES, freeze)
    assert fragment in str(caught.value)


def train_step(moves, accumulation_steps=1):
    def schedule(_):
        return jnp.float32(RATE)

    optimizer = create_optimizer(schedule, weight_decay=DECAY, trained=moves)
    loss = cross_entropy(stateless(APPLY), CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3)
    step = make_train_step(
        loss,
        optimizer,
        schedule,
        seed=0,
        ema_decay=0.9,
        trained=moves,
        accumulation_steps=accumulation_steps,
    )
    return jax.jit(step), optimizer


def batches():
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        yield {
            "image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8),
            "label": rng.integers(0, CLASSES, 4).astype(np.int32),
        }


@pytest.fixture(scope="module")
def probed():
    """A linear probe: its parameters before it, and its state after some steps."""
    params = jax.tree.map(jnp.asarray, random_params(SHAPES))
    step, optimizer = train_step(trained(SHAPES, "backbone"))
    state = initial_state(params, optimizer, with_ema=True)
    losses = []
    for batch in batches():
        state, metrics = step(state, batch)
        losses.append(float(metrics[0]))
    return params, state, losses


def test_frozen_parameters_and_their_average_keep_every_bit(probed):
    params, state, _ = probed
    before = tree.flatten_with_names(params)
    for after in (state.params, state.ema):
        for name, value in tree.flatten_with_names(after).items():
            same = bool(jnp.array_equal(value, before[name]))
            assert same == (not name.startswith("head/")), name


def test_the_head_moves_as_torchs(probed):
    params, state, losses = probed
    embed = jax.jit(functional("convnext_atto", num_classes=0, **SMALL)[0])
    headless = {name: part for name, part in params.items() if name != "head"}
    head = torch.nn.Linear(16, CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(np.array(params["head"]["kernel"]).T))
        head.bias.copy_(torch.tensor(np.array(params["head"]["bias"])))
    groups = [
        {"params": [head.weight], "weight_decay": DECAY},
        {"params": [head.bias], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=RATE)
    for batch, found in zip(batches(), losses, strict=True):
        pixels = (batch["image"] / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
        features = torch.tensor(np.array(embed(headless, pixels)))
        loss = torch.nn.functional.cross_entropy(
            head(features), torch.tensor(batch["label"]).long()
        )
        peer.zero_grad()
        loss.backward()
        peer.step()
        # Sums of some hundred float32 terms in another order.
        assert found == pytest.approx(loss.item(), rel=1e-5)
    # Adam divides by the root of a mean of squares: three steps of at most RATE, to a thousandth.
    for ours, theirs in (
        (state.params["head"]["kernel"].T, head.weight),
        (state.params["head"]["bias"], head.bias),
    ):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=STEPS * RATE * 1e-3)


@pytest.mark.parametrize("parts", [1, 2])
def test_nothing_is_computed_or_kept_for_what_is_frozen(parts):
    def cost(moves):
        step, optimizer = train_step(moves, parts)
        state = jax.eval_shape(
            lambda params: initial_state(params, optimizer, with_ema=True), SHAPES
        )
        flops = step.lower(state, next(batches())).compile().cost_analysis()["flops"]
        return flops, len(jax.tree.leaves(state.opt_state))

    flops, leaves = cost(None)
    probe_flops, probe_leaves = cost(trained(SHAPES, "backbone"))
    # Of forward and backward, where the one is half of the other, the first remains.
    assert probe_flops < 0.45 * flops
    assert leaves - probe_leaves == 2 * (len(jax.tree.leaves(SHAPES)) - 2)
