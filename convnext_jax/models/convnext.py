"""ConvNeXt as in "A ConvNet for the 2020s" (arXiv 2201.03545), section 2 and figure 4.

Fields turn it into ConvNeXt V2 (arXiv 2301.00808) and into timm's variants; their defaults are V1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.errors import require_one_of
from convnext_jax.models import checks, initial, layers, stems
from convnext_jax.ops.channels import scale
from convnext_jax.ops.pieces import in_pieces


class Block(nnx.Module):
    """Depthwise convolution, LayerNorm, and a perceptron over the channels, around a skip.

    A block of V2 has no layer scale, and GRN inside the perceptron.

    Args:
      dim: number of channels C.
      index: the block's number in the whole model, from 0; it keeps the blocks' random draws apart.
      kernel_size: side of the depthwise filter, odd.
      layer_scale_init: initial value of `gamma`; 0 or None: there is no `gamma`.
      drop_path: probability in [0, 1) of dropping the residual path of an example in training.
      norm_eps: epsilon of the norm.
      dtype: dtype of computation; parameters are float32.
      rngs: its `params` stream draws the initial values.
      grn: global response normalisation behind the activation.
      activation: a key of `layers.ACTIVATIONS`.
      norm: a key of `layers.NORMS`.
    """

    def __init__(
        self,
        dim: int,
        *,
        index: int,
        kernel_size: int,
        layer_scale_init: float | None,
        drop_path: float,
        norm_eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        grn: bool = False,
        activation: str = "gelu",
        norm: str = "layer_norm",
    ):
        """Draws the initial parameters."""
        self.dwconv = layers.DepthwiseConv(dim, kernel_size, dtype, rngs)
        self.norm = layers.NORMS[norm](dim, norm_eps, dtype, rngs)
        self.pwconv1 = layers.Linear(dim, 4 * dim, dtype, rngs)
        self.grn = layers.GlobalResponseNorm(4 * dim, dtype) if grn else None
        self.pwconv2 = layers.Linear(4 * dim, dim, dtype, rngs)
        self.gamma = nnx.Param(initial.full((dim,), layer_scale_init)) if layer_scale_init else None
        self.activation = activation
        self.index = index
        self.drop_path = drop_path
        self.dtype = dtype

    def __call__(self, x: Array, key: Array | None = None, inside: Array | None = None) -> Array:
        """Maps `x` [N, H, W, C] to the same shape and dtype.

        `key` is the whole model's key of this step; None is inference. What is not `inside`, bool
        [N, H, W, 1], is taken for zeros, and meaningless in the result: maps of several sizes lie
        in one array so.
        """
        # What is added to in the end is not masked: `x`'s gradient would then end with a choice,
        # which XLA computes again on CPUs, with all in front of it, wherever it is used.
        y = x if inside is None else jnp.where(inside, x, jnp.zeros((), x.dtype))
        y = self.dwconv(y)
        if key is None and self.grn is None:
            width = self.pwconv1.out_features
            return in_pieces(lambda x, y: x + self._mixed(y), x, y, width=width)
        y = self._mixed(y, inside)
        if key is not None and self.drop_path > 0:
            y = layers.drop_path(y, jax.random.fold_in(key, self.index), self.drop_path)
        return x + y

    def _mixed(self, y: Array, inside: Array | None = None) -> Array:
        """What comes behind the depthwise convolution: each pixel by itself, but for GRN."""
        y = self.norm(y)
        y = self.pwconv1(y)
        y = layers.ACTIVATIONS[self.activation](y)
        if self.grn is not None:
            y = self.grn(y, inside)
        y = self.pwconv2(y)
        return y if self.gamma is None else scale(y, self.gamma[...])


def run_blocks(
    blocks: Sequence[Callable[..., Array]],
    x: Array,
    key: Array | None,
    remat: bool,
    inside: Array | None = None,
) -> Array:
    """Applies `blocks` in turn; those of `Block` are told what is `inside`, if it is given.

    With `remat` the backward pass keeps only what lies between blocks, and computes each block's
    inside again.
    """
    more = {} if inside is None else {"inside": inside}
    for block in blocks:
        # `block` is closed over, and bound here because the loop moves on.
        if remat:
            x = jax.checkpoint(lambda x, block=block: block(x, key, **more))(x)
        else:
            x = block(x, key, **more)
    return x


class ConvNeXt(layers.Keyed):
    """ConvNeXt: images to logits, or to the feature maps of its four stages.

    Parameters have the names of the reference implementation. Initial kernels are normal with
    standard deviation 0.02, biases 0. With the defaults this is V1; V2 is `grn=True,
    layer_scale_init=None`. The image towers of OpenCLIP are these models too, with a head whose
    bias is 0 (with `head_hidden_size` where their projection is a perceptron).

    Args:
      depths: number of blocks of each stage.
      dims: number of channels of each stage.
      num_classes: length of the logits; 0: there is no head, and the model returns the embedding.
      in_channels: number of channels of images.
      kernel_size: side of the depthwise filters, odd; or one for each stage.
      layer_scale_init: initial value of the blocks' `gamma`; 0 or None: there is no such parameter.
      grn: global response normalisation in the blocks (V2).
      stem: `patch`, or one of the overlapping stems in `stems.STEMS`.
      activation: `gelu` (exact), `gelu_tanh` or `silu`; in the blocks, and in the stem
        `overlap_act`.
      norm: `layer_norm` or `simple_norm` (no mean is subtracted, no bias).
      norm_eps: epsilon of every norm.
      head_norm_first: normalise the last map before it is averaged (parameters `norm_pre`) instead
        of the average (`norm`).
      head_hidden_size: width of a layer with exact GELU before the head (`pre_logits`); None: there
        is no such layer.
      drop_path: probability in [0, 1) of dropping the last block's residual path of an example in
        training; the blocks before it have linearly less, the first one 0.
      head_init_scale: multiplies the initial kernel and bias of the head.
      dtype: dtype of computation: float32, bfloat16, or for inference float16. Parameters,
        statistics of norms, pooling and the head are float32.
      remat: recompute the inside of blocks in the backward pass instead of storing it.
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
        kernel_size: int | Sequence[int] = 7,
        layer_scale_init: float | None = 1e-6,
        grn: bool = False,
        stem: str = "patch",
        activation: str = "gelu",
        norm: str = "layer_norm",
        norm_eps: float = 1e-6,
        head_norm_first: bool = False,
        head_hidden_size: int | None = None,
        drop_path: float = 0.0,
        head_init_scale: float = 1.0,
        dtype: DTypeLike = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the initial parameters."""
        checks.check_hyperparameters(
            depths,
            dims,
            num_classes,
            in_channels,
            kernel_size,
            layer_scale_init,
            drop_path,
            norm_eps,
        )
        require_one_of("stem", stem, stems.STEMS)
        require_one_of("activation", activation, layers.ACTIVATIONS)
        require_one_of("norm", norm, layers.NORMS)
        checks.require(
            head_hidden_size is None or head_hidden_size >= 1,
            "head_hidden_size",
            head_hidden_size,
            "be positive, or None for no such layer",
        )
        self.depths = tuple(depths)
        self.dims = tuple(dims)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dtype = checks.compute_dtype(dtype)
        self.remat = remat

        make_norm = layers.NORMS[norm]
        kernel_sizes = [kernel_size] * len(depths) if isinstance(kernel_size, int) else kernel_size
        rates = layers.drop_path_rates(drop_path, sum(depths))
        downsample_layers, stages = [], []
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if stage == 0:
                convs = stems.STEMS[stem](in_channels, dim, activation, self.dtype, rngs)
                stem_norm = make_norm(dim, norm_eps, self.dtype, rngs)
                downsample_layers.append(nnx.List([*convs, stem_norm]))
            else:
                stage_norm = make_norm(dims[stage - 1], norm_eps, self.dtype, rngs)
                conv = layers.PatchConv(dims[stage - 1], dim, 2, self.dtype, rngs)
                downsample_layers.append(nnx.List([stage_norm, conv]))
            first = sum(depths[:stage])
            blocks = [
                Block(
                    dim,
                    index=index,
                    kernel_size=kernel_sizes[stage],
                    layer_scale_init=layer_scale_init,
                    drop_path=rates[index],
                    norm_eps=norm_eps,
                    dtype=self.dtype,
                    rngs=rngs,
                    grn=grn,
                    activation=activation,
                    norm=norm,
                )
                for index in range(first, first + depth)
            ]
            stages.append(nnx.List(blocks))
        self.downsample_layers = nnx.List(downsample_layers)
        self.stages = nnx.List(stages)
        final_norm = make_norm(dims[-1], norm_eps, jnp.float32, rngs)
        self.norm_pre = final_norm if head_norm_first else None
        self.norm = None if head_norm_first else final_norm
        width = dims[-1] if head_hidden_size is None else head_hidden_size
        self.pre_logits = (
            None if head_hidden_size is None else layers.Linear(dims[-1], width, jnp.float32, rngs)
        )
        self.head = layers.head(width, num_classes, head_init_scale, rngs)

    def features(self, images: Array, key: Array | None = None) -> list[Array]:
        """Computes the feature map of each stage.

        Args:
          images: [N, H, W, in_channels] floating point, normalised; H and W at least 32 (with four
            stages). Rows and columns that do not fill a patch of a downsampling layer are cut off
            on the right and below.
          key: turns stochastic depth on (training) and decides what it drops; None is inference.

        Returns:
          One array per stage, [N, H_s, W_s, dims[s]] in the compute dtype, with H_0 = H // 4 (with
          an overlapping stem H / 4 rounded up) and H_s = H_(s-1) // 2.

        Raises:
          InputError: if `images` is not as above.
        """
        smallest = 4 * 2 ** (len(self.dims) - 1)
        checks.check_inputs(images, key, self.in_channels, smallest)
        x = images.astype(self.dtype)
        maps = []
        for downsample, blocks in zip(self.downsample_layers, self.stages, strict=True):
            for layer in downsample:
                x = layer(x)
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
          which is the last feature map averaged over its area and normalised (or the output
          [N, head_hidden_size] of `pre_logits`).

        Raises:
          InputError: as in `features`.
        """
        return self.classify(self.features(images, key)[-1])

    def classify(self, last: Array) -> Array:
        """What follows the last feature map, [N, H, W, dims[-1]] of any dtype: as `__call__`."""
        return layers.pool_and_classify(
            last, self.norm, self.head, norm_pre=self.norm_pre, pre_logits=self.pre_logits
        )
