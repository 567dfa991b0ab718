"""The isotropic model against a statement of it in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch
from random_models import functional, random_images, with_values
from torch_weights import randomise, renamed

from convnext_jax.tree import flatten_with_names

nn = torch.nn


class TorchBlock(nn.Module):
    def __init__(self, dim, layer_scale):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        if layer_scale:
            self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(nn.functional.gelu(self.pwconv1(y)))
        y = y * self.gamma if hasattr(self, "gamma") else y
        return x + y.permute(0, 3, 1, 2)


class TorchIsotropic(nn.Module):
    def __init__(self, depth, dim, classes, layer_scale):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 16, stride=16)
        self.blocks = nn.Sequential(*(TorchBlock(dim, layer_scale) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


@pytest.mark.parametrize(
    ("name", "layer_scale"),
    [("convnext_isotropic_small", False), ("convnext_isotropic_large", True)],
)
def test_logits_and_gradients(name, layer_scale):
    oracle = TorchIsotropic(3, 24, 10, layer_scale)
    randomise(oracle, seed=2)
    apply, shapes = functional(name, depths=(3,), dims=(24,), num_classes=10)
    params = with_values(shapes, renamed(oracle.state_dict(), "own names"))
    images, weights = random_images(2, 90, 71, 3), random_images(2, 10, seed=1)

    theirs = oracle(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    (theirs * torch.tensor(np.asarray(weights))).sum().backward()
    ours = jax.jit(apply)(params, images)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, images) * weights)))(params)

    expected = renamed({n: p.grad for n, p in oracle.named_parameters()}, "own names")
    results = {"logits": ours, **flatten_with_names(gradients)}
    for result, value in {"logits": theirs.detach().numpy(), **expected}.items():
        # Float32 sums in another order, relative to the tensor's largest value as in
        # parity.py.
        error = np.max(np.abs(results[result] - value)) / np.max(np.abs(value))
        assert error < 3e-5, (result, error)
    assert len(results) == len(expected) + 1
