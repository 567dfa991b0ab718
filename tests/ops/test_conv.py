"""The gradients of convolutions against PyTorch's, whichever way they are computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import torch

from convnext_jax.ops.conv import conv

CASES = {
    # The images, the kernel, the zeros around, and whether products of matrices are used.
    "large": ((2, 9, 7, 256), (3, 3, 256, 256), ((1, 1), (1, 1)), True),
    "other sides": ((1, 8, 11, 128), (5, 2, 128, 512), ((3, 0), (0, 1)), True),
    "small": ((2, 9, 7, 24), (3, 3, 24, 32), ((1, 1), (1, 1)), False),
    "one by one": ((2, 9, 7, 256), (1, 1, 256, 256), ((0, 0), (0, 0)), True),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_pytorch(name):
    images, kernel_shape, padding, as_products = CASES[name]
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in (images, kernel_shape))
    y, pull_back = jax.vjp(lambda x, kernel: conv(x, kernel, 1, padding), x, kernel)
    dy = rng.standard_normal(y.shape, np.float32)
    gradients = pull_back(jnp.asarray(dy))

    # PyTorch wants channels first, and the columns' zeros before the rows'.
    theirs_x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    theirs_k = torch.tensor(kernel.transpose(3, 2, 0, 1), dtype=torch.float64, requires_grad=True)
    padded = torch.nn.functional.pad(theirs_x, [*padding[1], *padding[0]])
    out = torch.nn.functional.conv2d(padded, theirs_k)
    out.backward(torch.tensor(dy.transpose(0, 3, 1, 2), dtype=torch.float64))
    expected = theirs_x.grad.permute(0, 2, 3, 1), theirs_k.grad.permute(2, 3, 1, 0)
    for ours, theirs in zip(
        (y, *gradients), (out.detach().permute(0, 2, 3, 1), *expected), strict=True
    ):
        # Sums of up to 2,560 products, of standard deviation 50, in float32.
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-3)

    program = jax.jit(lambda dy: pull_back(dy)[1]).lower(jnp.asarray(dy)).as_text()
    assert ("dot_general" in program) == as_products
