"""UPerNet (arXiv 1807.10221) over a ConvNeXt backbone, as "A ConvNet for the 2020s" trains it.

Sources: the paper's section 4 and appendix A.3, and its official configs. Parameters have the names
of its checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.constants import IGNORED
from convnext_jax.models import checks, layers
from convnext_jax.models.backbone import Backbone
from convnext_jax.segmentation.heads import (
    AUXILIARY_CHANNELS,
    DECODER_CHANNELS,
    FCNHead,
    UPerHead,
)

# The stage whose map the auxiliary head takes.
AUXILIARY_STAGE = 2


class Logits(NamedTuple):
    """Logits of both heads, at their own strides.

    Attributes:
      decode: float32 [N, H // 4, W // 4, classes].
      auxiliary: float32 [N, H // 16, W // 16, classes]; None outside training.
    """

    decode: Array
    auxiliary: Array | None


class UPerNet(layers.Keyed):
    """UPerNet over ConvNeXt: images to the logits of classes, a quarter of their size.

    Args:
      num_classes: length of the logits.
      dims: number of channels of each of the four stages.
      dtype: dtype of computation: float32, bfloat16, or for inference float16; parameters,
        statistics, classifiers and logits are float32.
      rngs: its `params` stream draws the initial values; nothing of it is kept.
      decoder_channels: width of the decoder.
      auxiliary_channels: width of the auxiliary head.
      dropout: probability in [0, 1) with which each classifier drops a channel in training.
      **backbone: other arguments of `ConvNeXt`.

    Raises:
      InputError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dims: Sequence[int],
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
        decoder_channels: int = DECODER_CHANNELS,
        auxiliary_channels: int = AUXILIARY_CHANNELS,
        dropout: float = 0.1,
        **backbone,
    ) -> None:
        """Draws the initial parameters."""
        checks.require(len(dims) == 4, "dims", tuple(dims), "be of four stages")
        checks.require(
            1 <= num_classes <= IGNORED, "num_classes", num_classes, f"lie in 1..{IGNORED}"
        )
        for name, width in (
            ("decoder_channels", decoder_channels),
            ("auxiliary_channels", auxiliary_channels),
        ):
            checks.require(width >= 1, name, width, "be positive")
        self.num_classes = num_classes
        self.backbone = Backbone(dims=dims, dtype=dtype, rngs=rngs, **backbone)
        self.dtype, self.in_channels = self.backbone.dtype, self.backbone.in_channels
        checks.require(0 <= dropout < 1, "dropout", dropout, "lie in [0, 1)")
        self.decode_head = UPerHead(dims, num_classes, self.dtype, rngs, decoder_channels, dropout)
        self.auxiliary_head = FCNHead(
            dims[AUXILIARY_STAGE], num_classes, self.dtype, rngs, auxiliary_channels, dropout
        )

    def __call__(
        self, images: Array, key: Array | None = None, sizes: Array | None = None
    ) -> Logits:
        """Classifies each place.

        Args:
          images: [N, H, W, 3] floating point, normalised; H and W at least 32.
          key: turns training on: statistics of the batch, which the model takes note of, stochastic
            depth and dropout; None is inference.
          sizes: in inference, whole numbers [N, 2], heights and widths of images that lie in the
            upper left of theirs, and are classified as if they were alone; None: they fill it.
        """
        if sizes is not None:
            assert key is None, "sizes are for inference"
            maps, of_maps = self.backbone.features_within(images, sizes)
            return Logits(self.decode_head(maps, False, None, of_maps), None)
        train = key is not None
        keys = jax.random.split(key, 3) if train else (None,) * 3
        maps = self.backbone.features(images, keys[0])
        decode = self.decode_head(maps, train, keys[1])
        if not train:
            return Logits(decode, None)
        return Logits(decode, self.auxiliary_head(maps[AUXILIARY_STAGE], train, keys[2]))
