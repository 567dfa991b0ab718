"""Safetensors files, mapped into memory with nothing but NumPy.

A file is 8 bytes, the little-endian length of a JSON header; the header, which says each tensor's
type, shape and place; and the tensors' bytes. (The library `safetensors` reads it too, but not
bfloat16 into NumPy.)
"""

import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convnext_jax.errors import InputError

# The format's own limit, which keeps a reader from parsing gigabytes.
_LONGEST_HEADER = 100_000_000

_TYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def looks_like_safetensors(path: Path) -> bool:
    """Whether a JSON object begins behind the first 8 bytes, or the name says so."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps a file's tensors into memory.

    Returns:
      Arrays that lie in the mapped file, and the header's `__metadata__`.

    Raises:
      InputError: the file is truncated, damaged, not of this type, or its header is too long.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(
                f"{path} is truncated or no safetensors file: its header should have {length}"
                f" bytes, the whole file has {size}"
            )
        if length > _LONGEST_HEADER:
            raise InputError(
                f"{path} is refused: its header has {length} bytes, more than the"
                f" {_LONGEST_HEADER} that the safetensors format allows"
            )
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            places = {name: _place(info) for name, info in header.items()}
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged or no safetensors file: its header cannot be read ({error})"
            ) from error
    end = max((stop for _, _, _, stop in places.values()), default=0)
    if size != 8 + length + end:
        raise InputError(
            f"{path} is truncated or damaged: by its header it has {8 + length + end} bytes, in"
            f" fact {size}"
        )
    ordered = sorted((place[2:], name) for name, place in places.items() if place[2] < place[3])
    for ((_, stop), name), ((start, _), following) in itertools.pairwise(ordered):
        if start < stop:
            raise InputError(f"{path} is damaged: `{name}` and `{following}` overlap in it")
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if end else np.empty(0, np.uint8)
    tensors = {}
    for name, (dtype, shape, start, stop) in places.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if start < 0 or min(shape, default=0) < 0 or stop - start != size:
            raise InputError(
                f"{path} is damaged: the place of `{name}` does not fit its shape {shape}"
            )
        tensors[name] = np.asarray(data[start:stop]).view(dtype).reshape(shape)
    return tensors, metadata


def _place(info: dict[str, Any]) -> tuple[Any, tuple[int, ...], int, int]:
    start, stop = (int(offset) for offset in info["data_offsets"])
    return _TYPES[info["dtype"]], tuple(int(n) for n in info["shape"]), start, stop


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
    integers: Collection[str] = (),
) -> None:
    """Writes tensors one after the other, so that never two of them are in memory.

    Args:
      path: the file.
      shapes: of each tensor by its name.
      tensor: gives a tensor by its name.
      metadata: what else the header says.
      integers: names of tensors that are int64; the others are float32.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # The wider ones first, so that each lies at a multiple of its items' size.
    names = sorted(shapes, key=lambda name: name not in integers)
    for name in names:
        dtype, size = ("I64", 8) if name in integers else ("F32", 4)
        start, end = end, end + size * math.prod(shapes[name])
        header[name] = {
            "dtype": dtype,
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Readers map the tensors, which want to be aligned.
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dtype = "<i8" if name in integers else "<f4"
            file.write(np.ascontiguousarray(tensor(name), dtype).data)
