"""Classes and embeddings of images."""

import collections
import concurrent.futures
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from convnext_jax import sharding
from convnext_jax.classification.grad_cam import logits_and_maps
from convnext_jax.classification.preprocess import ImageError, ImageLike, Preprocess
from convnext_jax.data.normalize import normalize
from convnext_jax.errors import InputError, RunError
from convnext_jax.models.registry import Model
from convnext_jax.models.spec import kernel_dtypes, rounded_kernels
from convnext_jax.models.variants import Preprocessing
from convnext_jax.processes import usable_cores
from convnext_jax.weights.class_names import readable


class Prediction(NamedTuple):
    """The likeliest classes of an image, the likeliest first.

    Attributes:
      labels: 0..num_classes-1.
      names: of the same classes; where classes have no names, the labels.
      probabilities: of the same classes, in 0..1.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]


class Explanation(NamedTuple):
    """A prediction, and where in the image the model sees its likeliest class.

    Attributes:
      prediction: the likeliest classes.
      seen: the image as it was fed to the model.
      heat: Grad-CAM of the likeliest class, float32 [h, w] in 0..1 (`grad_cam.grad_cam`).
    """

    prediction: Prediction
    seen: Image.Image
    heat: np.ndarray


class Elsewhere(Protocol):
    """A model that something else than JAX may run.

    Attributes:
      num_classes: length of its logits; 0: it gives embeddings.
      in_channels: of images.
      output_size: length of its logits or embeddings.
    """

    num_classes: int
    in_channels: int
    output_size: int

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Maps uint8 [N, H, W, 3] to float32 [N, output_size]."""
        ...


class Failure(NamedTuple):
    """What stands in place of a result for an image that cannot be used.

    Attributes:
      error: one sentence with the image's path, or its place among those given, and the reason.
    """

    error: str


class Predictor:
    """Runs a model on images: decoded by threads, in batches, on all devices.

    A call with n images runs in batches of `batch_size`, or of the next power of two if n is
    smaller; a batch that is not full is filled up. The model is compiled once for each such size.

    Args:
      model: from `create_model` or `load_pretrained`, and its parameters are copied to the devices;
        or one that runs elsewhere.
      preprocessing: how images are fed to the model; a row of `VARIANTS` or `PRETRAINED` is one.
      class_names: by label; WordNet ids are replaced by English names. None: those of ImageNet-1K
        if the model has 1000 classes, else there are none.
      batch_size: images at once over all devices; rounded up to a multiple of their number.
      threads: that decode; None: one a core.

    Raises:
      InputError: an argument is out of range, or does not fit the model.
    """

    def __init__(
        self,
        model: Model | Elsewhere,
        preprocessing: Preprocessing,
        class_names: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        threads: int | None = None,
    ):
        """Copies the parameters; nothing is compiled yet."""
        if batch_size < 1:
            raise InputError(f"`batch_size` (={batch_size}) must be positive")
        if model.in_channels != 3:
            raise InputError(f"`in_channels` (={model.in_channels}) must be 3: images are RGB")
        if class_names is not None and len(class_names) != model.num_classes:
            raise InputError(
                f"the number of `class_names` (={len(class_names)}) must be the model's number of"
                f" classes (={model.num_classes})"
            )
        self.num_classes = model.num_classes
        self.class_names = readable(class_names, model.num_classes)
        self._preprocess = Preprocess(preprocessing)
        self._batch_size = batch_size
        self._threads = usable_cores() if threads is None else threads
        if isinstance(model, nnx.Module):
            self._compile(model, preprocessing)
        else:
            self._multiple = 1
            self._embedding_size = lambda: model.output_size
            self._probabilities = lambda pixels: _softmax(model(pixels))
            self._embeddings = model if model.num_classes == 0 else _only_logits
            self._explained = _only_logits

    def _compile(self, model: Model, preprocessing: Preprocessing) -> None:
        """Makes functions of pixels that run on all devices; nothing is compiled yet."""
        mesh = sharding.create_mesh()
        graph, state = nnx.split(model)
        params = rounded_kernels(nnx.to_pure_dict(state), kernel_dtypes(model))
        params = jax.device_put(params, sharding.replicated(mesh))
        mean, std = preprocessing.mean, preprocessing.std

        @jax.jit
        def probabilities(params: Any, images: jax.Array) -> jax.Array:
            logits = nnx.merge(graph, params)(normalize(images, mean, std))
            return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

        @jax.jit
        def embeddings(params: Any, images: jax.Array) -> jax.Array:
            headless = nnx.merge(graph, params)
            headless.head = None
            return headless(normalize(images, mean, std)).astype(jnp.float32)

        @jax.jit
        def explained(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            model = nnx.merge(graph, params)
            logits, heat = logits_and_maps(model, normalize(images, mean, std), None)
            return jax.nn.softmax(logits, axis=-1), heat, images

        def of_pixels(function: Callable[..., Any]) -> Callable[[np.ndarray], Any]:
            split = sharding.batch_sharding(mesh)
            return lambda pixels: function(params, jax.device_put(pixels, split))

        self._multiple = mesh.size
        size = preprocessing.input_size
        pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        self._embedding_size = lambda: jax.eval_shape(embeddings, params, pixels).shape[1]
        self._probabilities, self._embeddings = of_pixels(probabilities), of_pixels(embeddings)
        self._explained = of_pixels(explained)

    def predict(self, images: Iterable[ImageLike], top: int = 5) -> list[Prediction | Failure]:
        """Classifies images: the list of what `predictions` gives."""
        return list(self.predictions(images, top))

    def predictions(
        self, images: Iterable[ImageLike], top: int = 5
    ) -> Iterator[Prediction | Failure]:
        """Classifies images while they are asked for, a batch at a time.

        Args:
          images: paths and PIL images.
          top: how many classes to give, if there are as many.

        Returns:
          One result an image, in order. An image that cannot be used has a `Failure`.

        Raises:
          InputError: `top` is not positive, or the model has no head.
          RunError: the model's result is not finite.
        """
        self._require_classes(top)
        # Not a generator itself, so that these are raised by the call.
        return (
            row if isinstance(row, Failure) else self._likeliest(row, top)
            for row in self._rows(self._probabilities, images)
        )

    def explanations(
        self, images: Iterable[ImageLike], top: int = 5
    ) -> Iterator[Explanation | Failure]:
        """Classifies images and says where it sees what; else as `predictions`."""
        self._require_classes(top)

        def explained(row: Any) -> Explanation | Failure:
            if isinstance(row, Failure):
                return row
            probabilities, heat, pixels = row
            return Explanation(self._likeliest(probabilities, top), Image.fromarray(pixels), heat)

        return (explained(row) for row in self._rows(self._explained, images))

    def _require_classes(self, top: int) -> None:
        if top < 1:
            raise InputError(f"`top` (={top}) must be positive")
        if self.num_classes == 0:
            raise InputError("the model has no head (`num_classes` is 0): it gives embeddings only")

    def embed(self, images: Iterable[ImageLike]) -> tuple[np.ndarray, dict[int, str]]:
        """Computes pooled and normalised embeddings: what the model's head is applied to.

        Args:
          images: paths and PIL images.

        Returns:
          float32 [N, D], one row an image, in order; and by index the errors of those images that
          cannot be used, whose rows are NaN.

        Raises:
          RunError: the model's result is not finite.
        """
        rows = list(self.embeddings(images))
        failures = {i: row.error for i, row in enumerate(rows) if isinstance(row, Failure)}
        vectors = np.full((len(rows), self.embedding_size), np.nan, np.float32)
        for i, row in enumerate(rows):
            if not isinstance(row, Failure):
                vectors[i] = row
        return vectors, failures

    def embeddings(self, images: Iterable[ImageLike]) -> Iterator[np.ndarray | Failure]:
        """Computes embeddings while they are asked for, each float32 [D]; else as `predictions`."""
        return self._rows(self._embeddings, images)

    @property
    def embedding_size(self) -> int:
        """The length D of an embedding."""
        return self._embedding_size()

    def _likeliest(self, probabilities: np.ndarray, top: int) -> Prediction:
        # Stable: of equally likely classes the one with the smaller label comes first.
        labels = tuple(np.argsort(-probabilities, kind="stable")[:top].tolist())
        names = self.class_names
        return Prediction(
            labels,
            tuple(str(label) if names is None else names[label] for label in labels),
            tuple(probabilities[list(labels)].tolist()),
        )

    def _rows(
        self, function: Callable[[np.ndarray], Any], images: Iterable[ImageLike]
    ) -> Iterator[Any]:
        """Applies a function of pixels to images; gives its rows, and failures."""
        if isinstance(images, (str, os.PathLike, Image.Image)):
            raise TypeError("`images` must be a list of paths or PIL images, not a single one")
        images = iter(images)
        first = list(itertools.islice(images, self._batch_size))
        # The next power of two, at most the batch size; and a multiple of the devices.
        rows = min(1 << max(len(first) - 1, 0).bit_length(), self._batch_size)
        rows = -(-rows // self._multiple) * self._multiple
        return self._batched(function, itertools.chain(first, images), rows)

    def _batched(
        self, function: Callable[[np.ndarray], Any], images: Iterator[ImageLike], rows: int
    ) -> Iterator[Any]:
        numbered = enumerate(images)
        size = self._preprocess.size
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            # While a batch is computed, the two after it are decoded.
            ahead = collections.deque(
                pool.submit(self._read, *item) for item in itertools.islice(numbered, 3 * rows)
            )
            while ahead:
                read = [ahead.popleft().result() for _ in range(min(rows, len(ahead)))]
                pixels = np.zeros((rows, size, size, 3), np.uint8)
                for row, image in zip(pixels, read, strict=False):
                    if not isinstance(image, Failure):
                        row[...] = image
                results = function(pixels)
                ahead.extend(
                    pool.submit(self._read, *item) for item in itertools.islice(numbered, rows)
                )
                results = jax.tree.map(np.asarray, results)
                for i, image in enumerate(read):
                    result = jax.tree.map(operator.itemgetter(i), results)
                    if isinstance(image, Failure):
                        yield image
                    elif all(np.isfinite(part).all() for part in jax.tree.leaves(result)):
                        yield result
                    else:
                        raise RunError("the model's result must be finite, and is not")

    def _read(self, index: int, image: ImageLike) -> np.ndarray | Failure:
        try:
            return self._preprocess.read(image)
        except ImageError as error:
            name = f"image {index}" if isinstance(image, Image.Image) else os.fspath(image)
            return Failure(f"{name}: {error}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _only_logits(pixels: np.ndarray) -> np.ndarray:
    raise InputError(
        "an exported model gives logits alone: what else there is needs the checkpoint"
    )
