"""What is computed of each region of interest (RoI): its class and box, and its mask.

As mmdetection 2.11 has them, on which the paper's runs stand; with the names of its checkpoints.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.detection.frame import View
from convnext_jax.detection.layers import (
    Conv,
    ConvModule,
    Deconv,
    float32_linear,
    he_normal,
    xavier_uniform,
)
from convnext_jax.detection.loss import binary_cross_entropy, share
from convnext_jax.detection.regions import Sampled
from convnext_jax.models.layers import Linear

# Sides of what RoIAlign gives the heads, and of a predicted mask.
BOX_FEATURES = 7
MASK_FEATURES = 14
MASK_SIDE = 28


class BoxHead(nnx.Module):
    """The class of a RoI, and for each class how its box is to be moved.

    Mask R-CNN's has two hidden layers (`Shared2FCBBoxHead`), Cascade's four convolutions with batch
    normalisation before one (`Shared4Conv1FCBBoxHead`).

    Args:
      channels: of the RoI's features, and of the convolutions.
      num_classes: without the background, which is the class of this number.
      features: width of the hidden layers.
      convs: number of convolutions.
      layers: number of hidden layers.
      dtype: dtype of computation; the results are float32.
      rngs: its `params` stream draws the initial values.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        features: int,
        *,
        convs: int,
        layers: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the initial parameters."""
        self.shared_convs = nnx.List(
            [ConvModule(channels, channels, 3, dtype, rngs, norm=True) for _ in range(convs)]
        )
        widths = [channels * BOX_FEATURES**2] + [features] * layers
        self.shared_fcs = nnx.List(
            [
                Linear(before, after, dtype, rngs, xavier_uniform(before, after))
                for before, after in zip(widths[:-1], widths[1:], strict=True)
            ]
        )
        self.fc_cls = float32_linear(features, num_classes + 1, 0.01, rngs)
        self.fc_reg = float32_linear(features, 4 * num_classes, 0.001, rngs)

    def __call__(
        self, x: Array, train: bool = False, valid: Array | None = None
    ) -> tuple[Array, Array]:
        """Looks at RoIs.

        Args:
          x: their features, [R, 7, 7, channels]. The first hidden layer takes them in the order
            rows, columns, channels.
          train: normalises by statistics of the valid RoIs of the batch.
          valid: bool [R], which RoIs there are; None: all.

        Returns:
          Logits, float32 [R, num_classes + 1], the background last; and deltas of the box for each
          class, float32 [R, num_classes, 4].
        """
        for module in self.shared_convs:
            x = module(x, train, valid)
        x = x.reshape(len(x), -1)
        for layer in self.shared_fcs:
            x = jax.nn.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x).reshape(len(x), -1, 4)


class MaskHead(nnx.Module):
    """Where in a RoI its object is (`FCNMaskHead`).

    Args:
      channels: of the RoI's features, and of the convolutions.
      num_classes: each has a mask of its own.
      dtype: dtype of computation; logits are float32.
      rngs: its `params` stream draws the initial values.
    """

    def __init__(self, channels: int, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Draws the initial parameters."""
        self.convs = nnx.List([ConvModule(channels, channels, 3, dtype, rngs) for _ in range(4)])
        self.upsample = Deconv(channels, dtype, rngs)
        init = he_normal(num_classes)
        self.conv_logits = Conv(channels, num_classes, 1, jnp.float32, rngs, init)

    def __call__(self, x: Array, labels: Array | None = None) -> Array:
        """Maps features [R, 14, 14, channels] to logits of masks.

        Args:
          x: the features.
          labels: whole numbers [R], the class whose mask is asked for; what is no class: any one.
            None: all.

        Returns:
          float32 [R, 28, 28] of those classes, or [R, 28, 28, num_classes] of all.
        """
        for module in self.convs:
            x = module(x)
        x = jax.nn.relu(self.upsample(x))
        if labels is None:
            return self.conv_logits(x)
        # One class of a RoI is asked for: one column of the kernel, and no array of all classes.
        labels = jnp.clip(labels, 0, self.conv_logits.out_features - 1)
        columns = jnp.take(self.conv_logits.kernel[0, 0], labels, axis=1).T
        assert self.conv_logits.bias is not None
        biases = jnp.take(self.conv_logits.bias[...], labels)
        products = x.astype(jnp.float32) * columns[:, None, None, :]
        return products.sum(-1) + biases[:, None, None]


def of_class(deltas: Array, labels: Array) -> Array:
    """Deltas [N, R, num_classes, 4] of one class each, [N, R, 4]; of the background any."""
    labels = jnp.minimum(labels, deltas.shape[2] - 1)
    return jnp.take_along_axis(deltas, labels[..., None, None], axis=2)[:, :, 0]


def look(
    head: BoxHead, view: View, boxes: Array, train: bool = False, valid: Array | None = None
) -> tuple[Array, Array]:
    """What a head says of boxes [N, R, 4] (of which some are `valid`, bool [N, R]).

    Returns:
      Logits [N, R, num_classes + 1] and deltas [N, R, num_classes, 4].
    """
    x = view.features(boxes, BOX_FEATURES)
    outputs = head(x.reshape(-1, *x.shape[2:]), train, None if valid is None else valid.reshape(-1))
    logits, deltas = (y.reshape(*boxes.shape[:2], *y.shape[1:]) for y in outputs)
    return logits, deltas


def look_for_masks(head: MaskHead, features: Array, labels: Array) -> Array:
    """Logits of masks [N, R, 28, 28] of features [N, R, 14, 14, C], each of its label's class."""
    logits = head(features.reshape(-1, *features.shape[2:]), labels.reshape(-1))
    return logits.reshape(*labels.shape, *logits.shape[1:])


def mask_loss(head: MaskHead, view: View, sampled: Sampled, masks: Array, positives: int) -> Array:
    """Cross entropy of the masks of positives, their mean over the micro-batch; 0 without any.

    Args:
      head: that predicts them.
      view: of the images.
      sampled: regions, of which the first `positives` hold all that are positive.
      masks: uint8 [N, G, S, L // 8], packed bitmaps as they lie on the canvas.
      positives: of an image at most.
    """
    boxes, objects, labels, positive = (
        x[:, :positives] for x in (sampled.boxes, sampled.objects, sampled.labels, sampled.positive)
    )
    logits = look_for_masks(head, view.features(boxes, MASK_FEATURES), labels)
    targets = view.mask_targets(masks, boxes, objects, MASK_SIDE)
    losses = binary_cross_entropy(logits, targets).mean((2, 3))
    return share(losses, positive, positive.sum())
