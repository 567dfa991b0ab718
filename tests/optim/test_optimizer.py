"""Optimiser and schedule against PyTorch, timm and the recipe's formula."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from convnext_jax import create_model, tree
from convnext_jax.errors import InputError
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.optim.param_groups import decay_mask
from convnext_jax.optim.schedule import warmup_cosine

GOLDEN = Path(__file__).parents[1] / "golden"


def formula(step, peak, total, warmup, minimum):
    """The recipe's definition in double precision, written as the paper's code computes it."""
    if step < warmup:
        return float(np.linspace(0, peak, warmup)[step])
    i, steps = step - warmup, total - warmup
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * i / steps))


def test_schedule_of_300_epochs_equals_the_formula():
    per_epoch = 1281167 // 4096
    total, warmup = 300 * per_epoch, 20 * per_epoch
    schedule = warmup_cosine(4e-3, total_steps=total, warmup_steps=warmup, minimum=1e-6)
    found = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total)), np.float64)
    warm = np.linspace(0, 4e-3, warmup)
    i = np.arange(total - warmup)
    cosine = 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + np.cos(np.pi * i / (total - warmup)))
    # Three float32 roundings of a relative 6e-8 each; exactly 0 at the first step.
    np.testing.assert_allclose(found, np.concatenate([warm, cosine]), rtol=5e-7, atol=0)
    assert found[0] == 0


@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (5, 0), (5, 1), (5, 2), (5, 5)])
def test_short_schedules(total, warmup):
    schedule = warmup_cosine(0.1, total_steps=total, warmup_steps=warmup)
    expected = [formula(step, 0.1, total, warmup, 1e-6) for step in range(total)]
    found = [float(schedule(step)) for step in range(total)]
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=0)  # as above


def test_warmup_must_lie_within_the_run():
    with pytest.raises(InputError, match=r"warm-up \(=3 steps\) must lie within .*\(=2 steps\)"):
        warmup_cosine(0.1, total_steps=2, warmup_steps=3)


def random_tree(rng, shapes):
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("clip_norm, decay_end", [(None, None), (1.0, None), (None, 0.9)])
def test_adamw_equals_torch_with_timms_groups(clip_norm, decay_end):
    from oracles import timm, torch

    rng = np.random.default_rng(0)
    # Names and dimensions that fall on both sides of the decay mask.
    shapes = {"kernel": (5, 7), "bias": (7,), "gamma": (7,), "depthwise": (3, 3, 1, 4)}
    params = random_tree(rng, shapes)
    schedule = warmup_cosine(4e-3, total_steps=20, warmup_steps=5)
    decay = 0.3
    if decay_end is not None:
        decay = warmup_cosine(decay, total_steps=20, minimum=decay_end)
    optimizer = create_optimizer(schedule, weight_decay=decay, clip_norm=clip_norm)
    state = optimizer.init(params)

    model = torch.nn.Module()
    for name, value in params.items():
        model.register_parameter(name, torch.nn.Parameter(torch.tensor(np.asarray(value))))
    groups = timm.optim.param_groups_weight_decay(model, weight_decay=0.3)
    peer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)

    for step in range(20):
        gradients = random_tree(rng, shapes)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.tensor(np.asarray(gradients[name]))
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for group in peer.param_groups:
            group["lr"] = formula(step, 4e-3, 20, 5, 1e-6)
            if group["weight_decay"] and decay_end is not None:
                group["weight_decay"] = formula(step, 0.3, 20, 0, decay_end)
        peer.step()
        for name, parameter in model.named_parameters():
            # Each step adds a few roundings of 6e-8 relative to the largest value. Optax computes
            # 1 - 0.999**n in float32, PyTorch in double: that makes our updates, but not the
            # parameters, differ by 6e-6. With clipping PyTorch adds 1e-6 to the norm, which Adam,
            # blind to the scale, all but cancels.
            expected = parameter.detach().numpy()
            np.testing.assert_allclose(
                params[name], expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name
            )


def test_decay_mask_of_convnext_tiny_is_the_golden():
    """To rewrite the golden: delete it and run this test twice."""
    model = nnx.eval_shape(lambda: create_model("convnext_tiny"))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    marks = tree.flatten_with_names(decay_mask(params))
    lines = [
        f"{name} {list(leaf.shape)} {'decay' if marks[name] else 'no decay'}"
        for name, leaf in tree.flatten_with_names(params).items()
    ]
    path = GOLDEN / "convnext_tiny_decay.txt"
    if not path.exists():
        path.write_text("\n".join(lines) + "\n")
        pytest.fail(f"{path} was missing; it is written now, review it")
    assert lines == path.read_text().splitlines()


def test_decay_groups_have_the_sizes_of_timms():
    from oracles import timm, torch

    with torch.device("meta"):
        peer = timm.create_model("convnext_tiny")
    no_decay, decay = timm.optim.param_groups_weight_decay(peer, weight_decay=0.05)
    sizes = [sum(p.numel() for p in group["params"]) for group in (decay, no_decay)]

    model = nnx.eval_shape(lambda: create_model("convnext_tiny"))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    marks = tree.flatten_with_names(decay_mask(params))
    leaves = tree.flatten_with_names(params)
    ours = [sum(leaf.size for name, leaf in leaves.items() if marks[name] == m) for m in (1, 0)]
    assert ours == sizes
