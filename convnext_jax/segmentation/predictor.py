"""The class of each pixel of images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from convnext_jax.data.decode import one_ahead, opened
from convnext_jax.errors import InputError
from convnext_jax.models.spec import ModelDescription
from convnext_jax.segmentation import inference
from convnext_jax.segmentation.views import windows

# Arrays for images of several sizes are as large as the next multiple of this, so that a folder of
# photos needs few programs.
_STEP = 512


class Segmentation(NamedTuple):
    """What was found in an image.

    Attributes:
      image: in RGB, as it was seen, at its own size.
      labels: the class of each pixel, uint8 [H, W].
    """

    image: Image.Image
    labels: np.ndarray


class Failure(NamedTuple):
    """What stands in place of a result for an image that cannot be used.

    Attributes:
      error: one sentence with the image's path and the reason.
    """

    error: str


class Predictor:
    """Segments images of any size, in windows, on one device.

    Args:
      description: of a model that segments, and how images are fed to it.
      params: its parameters.
      batch_stats: its statistics.
      elsewhere: in place of both, the model as something else than JAX may run it: uint8
        [N, size, size, 3] to float32 logits [N, size / 4, size / 4, classes].

    Raises:
      InputError: the model takes no RGB images.
    """

    def __init__(
        self,
        description: ModelDescription,
        params: Any = None,
        batch_stats: Any = None,
        *,
        elsewhere: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Compiles nothing yet."""
        channels = description.spec.overrides.get("in_channels", 3)
        if channels != 3:
            raise InputError(f"`in_channels` (={channels}) must be 3: images are RGB")
        self._description = description
        self._elsewhere = elsewhere

        def maps(params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> jax.Array:
            groups = inference.window_groups(description, params, batch_stats, batch)
            return inference.class_maps(groups, batch)

        def maps_of(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
            return inference.class_maps([inference.Group(0, logits)], batch)

        of_windows = jax.jit(maps)
        self._maps = lambda batch: of_windows(params, batch_stats, batch)
        self._maps_of = jax.jit(maps_of)

    def predictions(self, images: Iterable[str | Image.Image]) -> Iterator[Segmentation | Failure]:
        """Segments images while they are asked for, and reads one ahead.

        Args:
          images: paths, and PIL images.

        Returns:
          Their results in their order.
        """
        return map(self._segmented, one_ahead(self._prepared, images))

    def _prepared(self, image: str | Image.Image) -> Any:
        try:
            picture = opened(image, self._description.preprocessing.exif)
        except InputError as error:
            return Failure(str(error))
        height, width = (-(-side // _STEP) * _STEP for side in (picture.height, picture.width))
        try:
            row = windows(self._description, (height, width))((picture, None))
            crop, seen = row["image"].shape[1], row["size"][: row["views"]]
            if self._elsewhere is not None and (seen < crop).any():
                raise InputError(
                    f"an image of {picture.width}x{picture.height} pixels does not fill the"
                    f" {crop} pixels that an exported model takes; use the checkpoint"
                )
            return picture, row
        except InputError as error:
            return Failure(f"{image}: {error}" if isinstance(image, str) else str(error))

    def _segmented(self, prepared: Any) -> Segmentation | Failure:
        if isinstance(prepared, Failure):
            return prepared
        image, row = prepared
        batch = {name: np.asarray(value)[None] for name, value in row.items()}
        if self._elsewhere is None:
            maps = self._maps(batch)
        else:
            seen = int(row["views"])
            logits = self._elsewhere(row["image"][:seen])
            # The program that joins windows is for as many as an image may have.
            filled = np.zeros((len(row["image"]), *logits.shape[1:]), np.float32)
            filled[:seen] = logits
            maps = self._maps_of(filled[None], batch)
        return Segmentation(image, np.asarray(maps)[0][: image.height, : image.width])
