"""Exported models, as functions of pixels."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from convnext_jax.errors import InputError, RunError, needed_for, require_one_of
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelDescription

# The file that each run-time reads, of a folder that `python -m convnext_jax.export` made.
RUNTIMES = {"onnx": "model.onnx", "stablehlo": "model.stablehlo"}


class ExportedModel:
    """A model in the folder that it was exported to.

    Attributes:
      description: model, preprocessing and classes.
      parameters: which of its source's, a key of `constants.PARAMETERS`.
      num_classes: length of the logits; 0: it gives embeddings.
      in_channels: of images.
      output_size: length of what it gives for an image, or for a place if it segments.
    """

    def __init__(self, folder: str, runtime: str) -> None:
        """Reads a folder.

        Args:
          folder: where the exported model is.
          runtime: a key of `RUNTIMES`.

        Raises:
          InputError: it has no such file, or the run-time is not installed or does not take it.
        """
        require_one_of("runtime", runtime, RUNTIMES)
        self._folder, file = folder, Path(folder) / RUNTIMES[runtime]
        if not file.is_file():
            raise InputError(
                f"`--runtime {runtime}` needs {file}, which is not there: write it with"
                f" `python -m convnext_jax.export --formats {runtime}`, and name its folder"
            )
        try:
            about = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
            self.description = ModelDescription.from_json(about)
            self._pixels = about["input"]["pixels"] == "0..255"
            self.parameters = about["parameters"]
            get_variant(self.description.spec.name)
            output = about["formats"][runtime]["output"]
            self.output_size = output[1 if runtime == "onnx" else -1]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder}/model.json must be as exporting wrote it: {error!r}"
            ) from error
        try:
            self._run = {"onnx": _onnx, "stablehlo": _stablehlo}[runtime](file)
        except InputError:
            raise
        except Exception as error:  # run-times have errors of their own
            reason = " ".join(str(error).split())
            raise InputError(f"{file} cannot be read: {reason}") from error
        spec = self.description.spec
        self.num_classes = spec.num_classes
        self.in_channels = spec.overrides.get("in_channels", 3)

    @property
    def segments(self) -> bool:
        """Whether it gives logits of places."""
        return get_variant(self.description.spec.name).task == "segmentation"

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Runs the model.

        Args:
          pixels: uint8 [N, size, size, 3].

        Returns:
          Logits or embeddings, float32 [N, output_size]; of a model that segments [N, size / 4,
          size / 4, classes].

        Raises:
          RunError: the run-time failed.
        """
        x = pixels.astype(np.float32)
        if not self._pixels:
            feeding = self.description.preprocessing
            mean, std = (np.array(part, np.float32) for part in (feeding.mean, feeding.std))
            x = (x / np.float32(255) - mean) / std
        try:
            return self._run(x)
        except Exception as error:  # likewise
            reason = " ".join(str(error).split())
            raise RunError(f"running the model in {self._folder} failed: {reason}") from error


def require_packages(formats: Sequence[str]) -> None:
    """Raises InputError unless what writes these formats, keys of `RUNTIMES`, is installed."""
    if "onnx" in formats:
        with needed_for("writing ONNX", "onnx"):
            import onnx  # noqa: F401
    if "stablehlo" in formats:
        with needed_for("writing StableHLO", "predict"):
            import flatbuffers  # noqa: F401


def is_exported(folder: str) -> bool:
    """Whether a folder is one that `python -m convnext_jax.export` made."""
    found = Path(folder)
    return (found / "model.json").is_file() and any(
        (found / file).is_file() for file in RUNTIMES.values()
    )


def _onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    with needed_for(f"running {file}", "onnx"):
        import onnxruntime
    from convnext_jax.processes import usable_cores

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = usable_cores()  # it counts the machine's, not the container's
    there = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    session = onnxruntime.InferenceSession(
        file, options, providers=[name for name in wanted if name in there]
    )

    def run(x: np.ndarray) -> np.ndarray:
        (found,) = session.run(None, {"images": np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
        assert isinstance(found, np.ndarray)
        return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found

    return run


def _stablehlo(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    from jax import export

    with needed_for(f"running {file}", "predict"):
        import flatbuffers  # noqa: F401
    exported = export.deserialize(bytearray(file.read_bytes()))
    return lambda x: np.asarray(exported.call(x))
