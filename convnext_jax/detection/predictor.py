"""The objects in images: their boxes, classes and masks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from convnext_jax.data.decode import one_ahead, opened
from convnext_jax.data.instances import Objects
from convnext_jax.detection.inputs import model_inputs
from convnext_jax.detection.pasting import Pasted, paste
from convnext_jax.detection.records import in_original
from convnext_jax.detection.transforms import EvalCanvas
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription

# What a detection must be sure of to be shown.
LEAST_SCORE = 0.3
# Of an image of no dataset.
_NONE = np.zeros(0)
_UNKNOWN = Objects(
    bbox=_NONE.reshape(0, 4),
    labels=_NONE.astype(np.int32),
    is_crowd=_NONE.astype(bool),
    area=_NONE,
    masks=(),
    height=0,
    width=0,
    image_id=0,
    index=0,
)


class Detected(NamedTuple):
    """What was found in an image, the surest first.

    Attributes:
      image: in RGB, as it was seen, at its own size.
      boxes: float32 [D, 4], x1, y1, x2, y2, pixels of the image.
      scores: float32 [D], 0..1.
      labels: int32 [D], classes.
      masks: the pixels of each, D of them.
    """

    image: Image.Image
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: tuple[Pasted, ...]


class Failure(NamedTuple):
    """What stands in place of a result for an image that cannot be used.

    Attributes:
      error: one sentence with the image's path and the reason.
    """

    error: str


class Predictor:
    """Detects objects in images of any size, one image at a time, on one device.

    Args:
      description: of a model that detects, and how images are fed to it.
      params: its parameters.
      batch_stats: its statistics.
      least_score: detections with less are left out, 0..1.
      apply: in place of the description's own the model as a function (params, batch_stats, images,
        key, sizes, portrait) -> (what `records.in_original` takes, batch statistics).

    Raises:
      InputError: the model takes no RGB images, or `least_score` is out of range.
    """

    def __init__(
        self,
        description: ModelDescription,
        params: Any,
        batch_stats: Any = None,
        *,
        least_score: float = LEAST_SCORE,
        apply: Callable[..., tuple[Any, Any]] | None = None,
    ) -> None:
        """Compiles nothing yet."""
        channels = description.spec.overrides.get("in_channels", 3)
        if channels != 3:
            raise InputError(f"`in_channels` (={channels}) must be 3: images are RGB")
        if not 0 <= least_score <= 1:
            raise InputError(f"`least_score` (={least_score}) must lie in 0..1")
        feeding = description.preprocessing
        self._canvas = EvalCanvas.of(feeding)
        self._least = least_score
        self._exif = description.preprocessing.exif
        model = description.spec.function_with_batch_stats() if apply is None else apply

        def detect(params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> Any:
            return model(params, batch_stats, key=None, **model_inputs(batch, feeding))[0]

        compiled = jax.jit(detect)
        self._detect = lambda batch: compiled(params, batch_stats, batch)

    def predictions(self, images: Iterable[str | Image.Image]) -> Iterator[Detected | Failure]:
        """Detects objects while they are asked for, and reads one image ahead.

        Args:
          images: paths, and PIL images.

        Returns:
          Their results in their order.
        """
        return map(self._detected, one_ahead(self._prepared, images))

    def _prepared(self, image: str | Image.Image) -> tuple[Image.Image, dict[str, Any]] | Failure:
        try:
            picture = opened(image, self._exif)
            return picture, self._canvas((picture, _UNKNOWN))
        except InputError as error:
            return Failure(str(error))

    def _detected(
        self, prepared: tuple[Image.Image, dict[str, Any]] | Failure
    ) -> Detected | Failure:
        if isinstance(prepared, Failure):
            return prepared
        image, row = prepared
        batch = {name: np.asarray(value)[None] for name, value in row.items()}
        # On the device a program has no use for the stored size.
        seen = {name: batch[name] for name in ("image", "size", "portrait")}
        found = in_original(batch, jax.device_get(self._detect(seen)), 0)
        shown = found.scores >= self._least
        masks = tuple(
            paste(mask, box, image.height, image.width)
            for mask, box in zip(found.masks[shown], found.boxes[shown], strict=True)
        )
        return Detected(image, found.boxes[shown], found.scores[shown], found.labels[shown], masks)
