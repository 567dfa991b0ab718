"""The road from ResNet to ConvNeXt (arXiv 2201.03545, section 2 and appendix C), step by step.

One class has all networks on it but the last, which is ConvNeXt without layer scale. What the paper
leaves open follows the authors' submission code, as far as it reproduces the published operations
(docs/roadmap.md says which is which).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from convnext_jax.errors import require_one_of
from convnext_jax.models import checks, initial, layers
from convnext_jax.models.batch_norm import BatchNorm
from convnext_jax.models.convnext import run_blocks
from convnext_jax.ops.channels import add_bias
from convnext_jax.ops.conv import conv
from convnext_jax.ops.strided_depthwise import strided_depthwise_conv

BLOCKS = ("bottleneck", "inverted_bottleneck", "depthwise_first")
STEMS = ("resnet", "patch")
NORMS = ("batch_norm", "layer_norm")
_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": layers.ACTIVATIONS["gelu"],
}
# Of a block's inner width and its narrow one, or of a stage's output and its 3x3 convolution.
_EXPANSION = 4


class Conv(nnx.Module):
    """A square convolution, dense or depthwise, that pads as PyTorch does with (size - 1) / 2.

    Args:
      features_in: number of input channels.
      features_out: number of output channels; as many where it is depthwise.
      size: side of the filter, odd, or 4 for patches, which need no padding.
      stride: of both axes.
      depthwise: a filter for each channel.
      bias: has a bias.
      dtype: dtype of computation and result; parameters are float32.
      rngs: its `params` stream draws the kernel.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        stride: int = 1,
        depthwise: bool = False,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        shape = (size, size, 1 if depthwise else features_in, features_out)
        self.kernel = nnx.Param(layers.kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(initial.full((features_out,), 0.0)) if bias else None
        self.stride = stride
        self.depthwise = depthwise
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Convolves `x` [N, H, W, features_in]."""
        x, kernel = x.astype(self.dtype), self.kernel[...]
        around = (kernel.shape[0] - 1) // 2 if kernel.shape[0] % 2 else 0
        if self.depthwise:
            y = strided_depthwise_conv(x, kernel, self.stride)
        else:
            y = conv(x, kernel, self.stride, ((around, around), (around, around)))
        return y if self.bias is None else add_bias(y, self.bias[...])


class Block(nnx.Module):
    """Three convolutions around a shortcut, which is a projection where shapes differ.

    A `bottleneck` is ResNet's: 1x1 to a quarter of `features`, k x k with the stride, 1x1 back. An
    `inverted_bottleneck` is 1x1 to four times `features`, depthwise k x k with the stride, 1x1
    back; `depthwise_first` begins with the depthwise convolution, on what comes in.

    Args:
      features_in: number of input channels.
      features: number of output channels.
      index: the block's number in the whole model, from 0; it keeps the blocks' random draws apart.
      stride: of the k x k convolution and the projection.
      drop_path: probability in [0, 1) of dropping the residual path of an example in training.
      block: one of `BLOCKS`.
      depthwise: the k x k convolution of a `bottleneck` is depthwise; the others' is.
      kernel_size: k.
      activation: `relu` or `gelu`.
      fewer_activations: one, between the 1x1 convolutions, instead of one behind each convolution
        (behind the last one: after the addition).
      fewer_norms: one, behind the depthwise convolution, instead of one behind each.
      norm: (channels) -> a norm, called with (x, train).
      bias: the convolutions have one; that of the shortcut never has.
      dtype: dtype of computation; parameters are float32.
      rngs: its `params` stream draws the initial values.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        index: int,
        stride: int,
        drop_path: float,
        block: str,
        depthwise: bool,
        kernel_size: int,
        activation: str,
        fewer_activations: bool,
        fewer_norms: bool,
        norm: Callable[[int], Any],
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        narrow, wide = features // _EXPANSION, features * _EXPANSION
        # Of each convolution: channels in and out, whether it is the k x k one.
        shapes = {
            "bottleneck": [
                (features_in, narrow, False),
                (narrow, narrow, True),
                (narrow, features, False),
            ],
            "inverted_bottleneck": [
                (features_in, wide, False),
                (wide, wide, True),
                (wide, features, False),
            ],
            "depthwise_first": [
                (features_in, features_in, True),
                (features_in, wide, False),
                (wide, features, False),
            ],
        }[block]
        convs, norms, activated = [], [], []
        for number, (channels_in, channels, spatial) in enumerate(shapes):
            convs.append(
                Conv(
                    channels_in,
                    channels,
                    kernel_size if spatial else 1,
                    stride=stride if spatial else 1,
                    depthwise=spatial and (depthwise or block != "bottleneck"),
                    bias=bias,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            norms.append(norm(channels) if spatial or not fewer_norms else None)
            activated.append(number == 1 or not fewer_activations)
        self.conv1, self.conv2, self.conv3 = convs
        self.norm1, self.norm2, self.norm3 = norms
        self.activated = tuple(activated)
        differs = stride != 1 or features_in != features
        self.shortcut = (
            Conv(features_in, features, 1, stride=stride, dtype=dtype, rngs=rngs)
            if differs
            else None
        )
        self.shortcut_norm = norm(features) if differs else None
        self.activation = activation
        self.index = index
        self.drop_path = drop_path

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        """Maps `x` [N, H, W, features_in] to [N, H', W', features].

        `key` is the whole model's key of this step, and turns training on; None is inference.
        """
        activation, train = _ACTIVATIONS[self.activation], key is not None
        parts = (
            (self.conv1, self.norm1, self.activated[0]),
            (self.conv2, self.norm2, self.activated[1]),
            (self.conv3, self.norm3, False),
        )
        y = x
        for layer, norm, activated in parts:
            y = layer(y)
            y = y if norm is None else norm(y, train)
            y = activation(y) if activated else y
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), train)
        if key is not None and self.drop_path > 0:
            y = layers.drop_path(y, jax.random.fold_in(key, self.index), self.drop_path)
        return activation(x + y) if self.activated[2] else x + y


class _LayerNorm(layers.LayerNorm):
    """Takes the flag that BatchNorm needs, which changes nothing here."""

    def __call__(self, x: Array, train: bool) -> Array:  # pyright: ignore
        """Normalises `x` [..., C]."""
        return super().__call__(x)


class RoadmapNet(layers.Keyed):
    """A network between ResNet and ConvNeXt: images to logits, or to the maps of its four stages.

    Initial kernels are normal with standard deviation 0.02, biases 0 (table 5).

    Args:
      depths: number of blocks of each stage.
      dims: number of channels that leave each stage.
      num_classes: length of the logits; 0: there is no head, and the model returns the embedding.
      in_channels: number of channels of images.
      stem: `resnet` (7x7 convolution of stride 2, norm, activation, 3x3 max pooling of stride 2) or
        `patch` (4x4 convolution of stride 4 with a bias, and nothing behind it).
      block: one of `BLOCKS`; see `Block`, also for the next five.
      depthwise: the k x k convolutions of a `bottleneck` are depthwise.
      kernel_size: k, odd.
      activation: `relu` or `gelu`.
      fewer_activations: one a block instead of three.
      fewer_norms: one a block instead of three.
      norm: `batch_norm`; or `layer_norm`, with which convolutions of blocks have a bias.
      norm_eps: epsilon of every norm.
      norm_group: number of consecutive examples that share BatchNorm's statistics in training: the
        paper's were those of one GPU. A smaller batch is one group.
      layer_scale_init: must be 0 or None: there is none on the road.
      drop_path: probability in [0, 1) of dropping the last block's residual path of an example in
        training; the blocks before it have linearly less, the first one 0.
      head_init_scale: multiplies the initial kernel of the head.
      dtype: dtype of computation: float32, bfloat16, or for inference float16.
      remat: recompute the inside of blocks in the backward pass instead of storing it; not with
        BatchNorm, which cannot note its statistics twice.
      rngs: its `params` stream draws the initial values; nothing of it is kept.

    Raises:
      InputError: if an argument is outside the range given above.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        dims: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        stem: str = "resnet",
        block: str = "bottleneck",
        depthwise: bool = False,
        kernel_size: int = 3,
        activation: str = "relu",
        fewer_activations: bool = False,
        fewer_norms: bool = False,
        norm: str = "batch_norm",
        norm_eps: float = 1e-5,
        norm_group: int = 128,
        layer_scale_init: float | None = None,
        drop_path: float = 0.0,
        head_init_scale: float = 1.0,
        dtype: DTypeLike = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        checks.check_hyperparameters(
            depths, dims, num_classes, in_channels, kernel_size, None, drop_path, norm_eps
        )
        for name, value, known in (
            ("stem", stem, STEMS),
            ("block", block, BLOCKS),
            ("activation", activation, _ACTIVATIONS),
            ("norm", norm, NORMS),
        ):
            require_one_of(name, value, known)
        checks.require(
            not layer_scale_init, "layer_scale_init", layer_scale_init, "be 0 or None on the road"
        )
        checks.require(
            not remat or norm != "batch_norm", "remat", remat, "be False for a model with BatchNorm"
        )
        checks.require(
            isinstance(norm_group, int) and norm_group >= 2,
            "norm_group",
            norm_group,
            "be a whole number, at least 2",
        )
        checks.require(isinstance(kernel_size, int), "kernel_size", kernel_size, "be one number")
        if block == "bottleneck":
            checks.require(
                all(dim % _EXPANSION == 0 for dim in dims), "dims", dims, "be multiples of 4"
            )
        self.depths = tuple(depths)
        self.dims = tuple(dims)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dtype = checks.compute_dtype(dtype)
        self.activation = activation
        self.remat = remat
        self.norm_group = norm_group if norm == "batch_norm" else None

        def make_norm(features: int) -> Any:
            if norm == "layer_norm":
                return _LayerNorm(features, norm_eps, self.dtype, rngs)
            return BatchNorm(features, self.dtype, eps=norm_eps, group=norm_group)

        resnet = stem == "resnet"
        width = dims[0] // _EXPANSION if block == "bottleneck" else dims[0]
        self.stem = Conv(
            in_channels,
            width,
            7 if resnet else 4,
            stride=2 if resnet else 4,
            bias=not resnet,
            dtype=self.dtype,
            rngs=rngs,
        )
        self.stem_norm = make_norm(width) if resnet else None
        rates = layers.drop_path_rates(drop_path, sum(depths))
        stages, index = [], 0
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks = []
            for number in range(depth):
                blocks.append(
                    Block(
                        width,
                        dim,
                        index=index,
                        stride=2 if stage > 0 and number == 0 else 1,
                        drop_path=rates[index],
                        block=block,
                        depthwise=depthwise,
                        kernel_size=kernel_size,
                        activation=activation,
                        fewer_activations=fewer_activations,
                        fewer_norms=fewer_norms,
                        norm=make_norm,
                        bias=norm == "layer_norm",
                        dtype=self.dtype,
                        rngs=rngs,
                    )
                )
                width, index = dim, index + 1
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = layers.head(width, num_classes, head_init_scale, rngs)

    def features(self, images: Array, key: Array | None = None) -> list[Array]:
        """Computes the feature map of each stage.

        Args:
          images: [N, H, W, in_channels] floating point, normalised; H and W at least 32.
          key: training: BatchNorm takes the batch's statistics, and this decides what stochastic
            depth drops; None is inference.

        Returns:
          One array a stage, [N, H_s, W_s, dims[s]] in the compute dtype; H_s is about H / 4, 8, 16
          and 32.

        Raises:
          InputError: `images` is not as above, or makes no whole groups.
        """
        checks.check_inputs(images, key, self.in_channels, smallest=4 * 2 ** (len(self.dims) - 1))
        x = self.stem(images.astype(self.dtype))
        if self.stem_norm is not None:
            x = _ACTIVATIONS[self.activation](self.stem_norm(x, key is not None))
            x = lax.reduce_window(
                x,
                -jnp.inf,
                lax.max,
                (1, 3, 3, 1),
                (1, 2, 2, 1),
                ((0, 0), (1, 1), (1, 1), (0, 0)),
            )
        maps = []
        for blocks in self.stages:
            x = run_blocks(blocks, x, key, self.remat)
            maps.append(x)
        return maps

    def __call__(self, images: Array, key: Array | None = None) -> Array:
        """Classifies images.

        Args:
          images: as in `features`.
          key: as in `features`.

        Returns:
          Logits [N, num_classes] float32; with `num_classes` 0 the embedding [N, dims[-1]] float32,
          which is the last feature map averaged over its area.

        Raises:
          InputError: as in `features`.
        """
        return self.classify(self.features(images, key)[-1])

    def classify(self, last: Array) -> Array:
        """What follows the last feature map, [N, H, W, dims[-1]] of any dtype: as `__call__`."""
        return layers.pool_and_classify(last, None, self.head)
