"""The heads of UPerNet (arXiv 1807.10221), and what they are made of.

As mmsegmentation 0.11 has them, on which the paper's runs stand; with the names of its checkpoints.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.models import initial
from convnext_jax.models.backbone import inside
from convnext_jax.models.batch_norm import BatchNorm
from convnext_jax.ops.channels import add_bias
from convnext_jax.ops.conv import conv
from convnext_jax.segmentation.resize import Resizing, adaptive_mean

# Sides of the pooled maps of the pyramid.
POOL_SCALES = (1, 2, 3, 6)
# Width of the decoder and of the auxiliary head, for backbones of every size.
DECODER_CHANNELS = 512
AUXILIARY_CHANNELS = 256


class ConvModule(nnx.Module):
    """A convolution without bias, batch normalisation, ReLU; the size of the map stays.

    Args:
      features_in: number of input channels.
      features_out: number of output channels.
      size: side of the filter, odd.
      dtype: dtype of computation.
      rngs: its `params` stream draws the kernel: normal, of variance 2 / (features_out size^2).
    """

    def __init__(
        self, features_in: int, features_out: int, size: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Draws the initial parameters."""
        self.conv = nnx.Conv(
            features_in,
            features_out,
            (size, size),
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=initial.normal(math.sqrt(2 / (features_out * size * size))),
            rngs=rngs,
        )
        self.bn = BatchNorm(features_out, dtype)

    def __call__(self, x: Array, train: bool) -> Array:
        """Maps [N, H, W, features_in] to [N, H, W, features_out]."""
        half = self.conv.kernel.shape[0] // 2
        around = ((half, half), (half, half))
        return self.behind(conv(x.astype(self.bn.dtype), self.conv.kernel[...], 1, around), train)

    def behind(self, y: Array, train: bool) -> Array:
        """What comes behind the convolution."""
        return jax.nn.relu(self.bn(y, train))


class Classifier(nnx.Conv):
    """The class of each place from its channels: whole channels dropped, then a 1x1 convolution.

    Args:
      features: number of input channels.
      num_classes: length of the logits.
      dropout: probability in [0, 1) of dropping a channel of an example in training.
      rngs: its `params` stream draws the kernel, normal of standard deviation 0.01.
    """

    def __init__(self, features: int, num_classes: int, dropout: float, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.dropout = dropout
        super().__init__(
            features,
            num_classes,
            (1, 1),
            dtype=jnp.float32,
            kernel_init=initial.normal(stddev=0.01),
            bias_init=initial.zeros,
            rngs=rngs,
        )

    def __call__(self, inputs: Array, key: Array | None = None) -> Array:  # pyright: ignore
        """Maps [N, H, W, features] to float32 [N, H, W, num_classes]; `key` turns dropout on."""
        x = inputs.astype(jnp.float32)
        if key is not None and self.dropout > 0:
            keep = jax.random.bernoulli(key, 1 - self.dropout, (x.shape[0], 1, 1, x.shape[3]))
            x = jnp.where(keep, x / (1 - self.dropout), 0.0)
        y = jnp.einsum("nhwc,cd->nhwd", x, self.kernel[0, 0])
        assert self.bias is not None
        return add_bias(y, self.bias[...])


class UPerHead(nnx.Module):
    """Pyramid pooling of the last map, then a feature pyramid over all four.

    Args:
      dims: number of channels of each map.
      num_classes: length of the logits.
      dtype: dtype of computation; logits are float32.
      rngs: its `params` stream draws the initial values.
      channels: number of channels inside.
      dropout: of the classifier.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        channels: int = DECODER_CHANNELS,
        dropout: float = 0.1,
    ) -> None:
        """Draws the initial parameters."""

        def module(features_in: int, size: int) -> ConvModule:
            return ConvModule(features_in, channels, size, dtype, rngs)

        self.psp_modules = nnx.List([module(dims[-1], 1) for _ in POOL_SCALES])
        self.bottleneck = module(dims[-1] + len(POOL_SCALES) * channels, 3)
        self.lateral_convs = nnx.List([module(dim, 1) for dim in dims[:-1]])
        self.fpn_convs = nnx.List([module(channels, 3) for _ in dims[:-1]])
        self.fpn_bottleneck = module(len(dims) * channels, 3)
        self.conv_seg = Classifier(channels, num_classes, dropout, rngs)

    def __call__(
        self,
        maps: Sequence[Array],
        train: bool,
        key: Array | None,
        sizes: Sequence[Array] | None = None,
    ) -> Array:
        """Computes the logits.

        Args:
          maps: of stride 4, 8, 16, 32.
          train: normalises by the batch.
          key: turns dropout on.
          sizes: whole numbers [N, 2] for each map, how much of it is the example's; None: all.

        Returns:
          float32 [N, H / 4, W / 4, classes].
        """

        def onto(x: Array, size: Array | int, level: int) -> Resizing:
            """How what has a size of its own is resized to that of a map."""
            arrays = x.shape[1:3], maps[level].shape[1:3]
            if sizes is None:
                return Resizing.of_arrays(*arrays)
            own = jnp.broadcast_to(size, sizes[level].shape)
            return Resizing.within(own, sizes[level], *arrays)

        def only(x: Array, level: int) -> Array:
            """With zeros beyond the map, which the next convolution sees."""
            return x if sizes is None else jnp.where(inside(x, sizes[level]), x, 0)

        last, top = maps[-1], len(maps) - 1
        own = [jnp.zeros(2, jnp.int32)] * len(maps) if sizes is None else sizes
        of_last = None if sizes is None else sizes[top]
        pooled = []
        for bins, module in zip(POOL_SCALES, self.psp_modules, strict=True):
            means = module(adaptive_mean(last, bins, of_last), train)
            pooled.append(onto(means, bins, top)(means))
        laterals = [lay(x, train) for x, lay in zip(maps[:-1], self.lateral_convs, strict=True)]
        joined = only(jnp.concatenate([last, *pooled], -1), top)
        laterals.append(self.bottleneck(joined, train))
        for level in range(top, 0, -1):
            x = laterals[level]
            laterals[level - 1] += onto(x, own[level], level - 1)(x)
        levels = [
            lay(only(laterals[level], level), train) for level, lay in enumerate(self.fpn_convs)
        ]
        levels.append(laterals[top])
        # The bottleneck convolves all levels side by side, resized to the first: a sum over levels.
        kernel = self.fpn_bottleneck.conv.kernel[...]
        first, *kernels = jnp.split(kernel, len(levels), axis=2)
        half = kernel.shape[0] // 2
        around = ((half, half), (half, half))
        y = conv(only(levels[0], 0), first, 1, around).astype(jnp.float32)
        for level, part in enumerate(kernels, start=1):
            x = levels[level]
            y += onto(x, own[level], 0).then_convolve(x, part)
        return self.conv_seg(self.fpn_bottleneck.behind(y, train), key)


class FCNHead(nnx.Module):
    """The auxiliary head: a 3x3 convolution and a classifier; only training needs it.

    Args:
      features_in: number of channels of its map.
      num_classes: length of the logits.
      dtype: dtype of computation; logits are float32.
      rngs: its `params` stream draws the initial values.
      channels: number of channels inside.
      dropout: of the classifier.
    """

    def __init__(
        self,
        features_in: int,
        num_classes: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        channels: int = AUXILIARY_CHANNELS,
        dropout: float = 0.1,
    ) -> None:
        """Draws the initial parameters."""
        self.convs = nnx.List([ConvModule(features_in, channels, 3, dtype, rngs)])
        self.conv_seg = Classifier(channels, num_classes, dropout, rngs)

    def __call__(self, x: Array, train: bool, key: Array | None) -> Array:
        """Maps [N, H, W, features_in] to logits, float32 [N, H, W, num_classes]."""
        return self.conv_seg(self.convs[0](x, train), key)
