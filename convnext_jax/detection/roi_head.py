"""What the heads of both detectors are to a detector."""

import abc
import dataclasses

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from convnext_jax.detection.frame import View
from convnext_jax.detection.regions import Objects, Regions
from convnext_jax.detection.results import Detections, Selection


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How many regions of an image training draws.

    Attributes:
      samples: in all.
      positives: of them at most.
    """

    samples: int
    positives: int


class RoIHead(nnx.Module, abc.ABC):
    """What becomes of regions: losses in training, detections in inference.

    Args:
      channels: of the pyramid's maps, and of convolutions.
      num_classes: labels lie in [0, num_classes).
      features: width of the box heads' hidden layers.
      sampling: in training.
      selection: in inference.
      dtype: dtype of computation.
      rngs: its `params` stream draws the initial values.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        features: int,
        sampling: Sampling,
        selection: Selection,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the initial parameters."""
        self.num_classes, self.sampling, self.selection = num_classes, sampling, selection
        self.make_heads(channels, features, dtype, rngs)

    @abc.abstractmethod
    def make_heads(self, channels: int, features: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        """Sets `bbox_head` and `mask_head`, with initial parameters."""

    @abc.abstractmethod
    def losses(
        self, key: Array, view: View, regions: Regions, objects: Objects, masks: Array
    ) -> dict[str, Array]:
        """Losses by name, float32 scalars.

        Args:
          key: of the drawing of regions.
          view: of the images.
          regions: that were proposed.
          objects: that there are.
          masks: uint8 [N, G, S, L // 8], packed bitmaps of the objects as they lie on the canvas.
        """

    @abc.abstractmethod
    def detect(self, view: View, regions: Regions) -> Detections:
        """What there is at the regions that were proposed."""
