"""ConvNeXt V2 against a statement of it in PyTorch, and global response normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
from oracles import torch
from random_models import random_images

from convnext_jax.models import layers

nn = torch.nn


class TorchGRN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):
        norms = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norms / (norms.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class TorchBlockV2(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.grn = TorchGRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(nn.functional.gelu(self.pwconv1(y))))
        return x + y.permute(0, 3, 1, 2)


class ChannelsLast(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TorchV2(nn.Module):
    def __init__(self, depths, dims, classes):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelsLast(dims[0], eps=1e-6))]
        )
        for a, b in zip(dims[:-1], dims[1:], strict=True):
            layer = nn.Sequential(ChannelsLast(a, eps=1e-6), nn.Conv2d(a, b, 2, 2))
            self.downsample_layers.append(layer)
        self.stages = nn.ModuleList(
            nn.Sequential(*(TorchBlockV2(dim) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], classes)

    def forward(self, x):
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((2, 3))))


def test_v2_as_the_paper_states_it():
    overrides = {"depths": (1, 2), "dims": (16, 24), "num_classes": 10}
    oracle = TorchV2(*overrides.values())
    errors = parity.errors_of(oracle, "own names", "convnextv2_tiny", gradients=True, **overrides)
    assert max(errors.values()) < parity.TOLERANCE, errors


def test_grn_starts_as_the_identity_and_survives_dead_channels():
    grn = layers.GlobalResponseNorm(3, jnp.float32)
    x = random_images(2, 4, 5, 3).at[..., 1].set(0.0)
    np.testing.assert_array_equal(grn(x), x)
    grn.gamma[...], grn.beta[...] = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.5, 0.25, 0.0])
    oracle = TorchGRN(3)
    with torch.no_grad():
        oracle.gamma.copy_(torch.tensor([1.0, 2.0, -1.0]))
        oracle.beta.copy_(torch.tensor([0.5, 0.25, 0.0]))
    weights = random_images(2, 4, 5, 3, seed=1)
    theirs = torch.tensor(np.asarray(x), requires_grad=True)
    (oracle(theirs) * torch.tensor(np.asarray(weights))).sum().backward()
    gradient = jax.grad(lambda x: jnp.sum(grn(x) * weights))(x)
    # Float32 rounding of values of order 1.
    np.testing.assert_allclose(grn(x), oracle(theirs).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(grn(x)))(jnp.zeros((1, 2, 2, 3)))))


def test_grn_in_bfloat16_rounds_once():
    grn = layers.GlobalResponseNorm(16, jnp.bfloat16)
    grn.gamma[...], grn.beta[...] = random_images(16, seed=1), random_images(16, seed=2)
    # 64 x 64 values: their squares cannot be added up in bfloat16, which has 8 bits.
    x = random_images(1, 64, 64, 16).astype(jnp.bfloat16)
    exact = layers.GlobalResponseNorm(16, jnp.float32)
    exact.gamma[...], exact.beta[...] = grn.gamma[...], grn.beta[...]
    expected = exact(x)
    assert grn(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(grn(x), expected.astype(jnp.bfloat16))
