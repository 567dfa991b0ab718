"""PyTorch's files: the only place that imports torch, and only when one is read or written."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convnext_jax.errors import InputError

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x80\x02"  # a pickle of protocol 2, before PyTorch 1.6
# Facebook's training checkpoints hold their command line. It is plain attributes: making one runs
# nothing.
_HARMLESS: list[Any] = [argparse.Namespace]


def read_pickle(path: Path) -> Any:
    """Reads a `.pth`, `.pt` or `.bin` file, its tensors mapped into memory where possible.

    Args:
      path: an existing file.

    Returns:
      What was pickled, with NumPy arrays for tensors; they may lie in the mapped file.

    Raises:
      InputError: torch is missing; the file is not PyTorch's, truncated or damaged; it tries to
        execute code.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if not (start == _ZIP or start.startswith(_LEGACY)):
        raise InputError(f"{path} is neither a safetensors file nor one written by `torch.save`")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {path} needs PyTorch (`pip install torch`); a safetensors file does not"
        ) from error
    if start == _ZIP:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=start == _ZIP)
    except pickle.UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is damaged or not a PyTorch checkpoint: {reason}") from error
    return _to_numpy(content, torch)


def _refusal(path: Path, message: str) -> str:
    code = re.search(r"GLOBAL (\S+)", message)
    if code is None:
        reason = (message.strip().splitlines() or ["it ends too early"])[-1]
        return f"{path} is damaged or not a PyTorch checkpoint: {reason}"
    return (
        f"{path} is refused, and nothing of it was run: beside tensors it holds"
        f" `{code[1]}`, and loading that executes code; ask its author for a safetensors file"
    )


def _check_archive(path: Path) -> None:
    """Compares the archive's checksums, which PyTorch itself does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise InputError(f"{path} is truncated or damaged: {error}") from error
    if damaged is not None:
        raise InputError(f"{path} is damaged: the checksum of its entry `{damaged}` is wrong")


def _to_numpy(content: Any, torch: Any) -> Any:
    if isinstance(content, torch.Tensor):
        if content.layout != torch.strided or content.is_quantized:
            raise InputError("sparse and quantised tensors cannot be converted")
        content = content.detach()
        if content.dtype == torch.bfloat16:
            return content.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        try:
            return content.numpy()
        except TypeError as error:
            raise InputError(f"tensors of type {content.dtype} cannot be converted") from error
    if isinstance(content, Mapping):
        return {key: _to_numpy(value, torch) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_to_numpy(value, torch) for value in content]
    return content


def write_pickle(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    under: str | None,
    beside: Mapping[str, Any],
) -> None:
    """Writes a `.pth` file of a state dict.

    Args:
      path: the file.
      tensors: by name.
      under: key of an outer dict that has them; None: there is no such dict.
      beside: what else that dict has, plain Python.

    Raises:
      InputError: torch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("writing .pth files needs PyTorch (`pip install torch`)") from error
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    torch.save(state if under is None else {**beside, under: state}, path)
