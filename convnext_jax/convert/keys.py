"""A format's names and layouts as a table that is applied strictly, and in both directions."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping

import numpy as np

from convnext_jax import progress
from convnext_jax.errors import InputError

# Float32 holds their values exactly; anything else would be rounded, or is no weight.
_FLOATS = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Axes of length 1 that a format puts before and after those of PyTorch's plain tensor."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def shape(self, plain: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a tensor that is plainly `plain`."""
        return self.before + plain + self.after


PLAIN = Layout()
ONES_BEFORE = Layout(before=(1, 1, 1))  # GRN [1, 1, 1, 4C]
ONES_AFTER = Layout(after=(1, 1))  # layer scale [C, 1, 1], a 1x1 convolution [out, in, 1, 1]


@dataclasses.dataclass(frozen=True)
class Order:
    """Where our axes are in PyTorch's plain tensor.

    Attributes:
      convolution: ours of a kernel, in the order of PyTorch's.
      map: rows and columns of a map that a linear layer looks at as a vector; ours has its channels
        last, PyTorch's first. None: it looks at no map.
    """

    convolution: tuple[int, int, int, int]
    map: tuple[int, int] | None = None

    def plain(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in PyTorch of what has `shape` here; biases are the same in both."""
        if len(shape) == 4:
            return tuple(shape[axis] for axis in self.convolution)
        return shape[::-1]  # [in, out] to [out, in]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The plain tensor of our array."""
        if array.ndim == 4:
            return array.transpose(self.convolution)
        if array.ndim == 2 and self.map is not None:
            features = array.reshape(*self.map, -1, array.shape[1])
            return features.transpose(3, 2, 0, 1).reshape(self.plain(array.shape))
        return array.T

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        if tensor.ndim == 4:
            return tensor.transpose(np.argsort(self.convolution))
        if tensor.ndim == 2 and self.map is not None:
            features = tensor.reshape(len(tensor), -1, *self.map)
            return features.transpose(2, 3, 1, 0).reshape(tensor.shape[::-1])
        return tensor.T


# HWIO to OIHW: a depthwise kernel [k, k, 1, C] becomes [C, 1, k, k].
USUAL = Order((3, 2, 0, 1))
TRANSPOSED_CONVOLUTION = Order((2, 3, 0, 1))  # HWIO to IOHW


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a format's table.

    Attributes:
      ours: pattern of our parameter names, such as `stages/{S}/{j}/dwconv/*`. A name in braces
        stands for a number (`{part}` for a word), and `*` for `kernel`, `scale` or `bias`.
      theirs: the same in the file; its `*` stands for `weight` (our kernel or scale) or `bias`.
      layouts: how the tensor may lie in a file; the first is how it is written.
      order: of its axes.
    """

    ours: str
    theirs: str
    layouts: tuple[Layout, ...] = (PLAIN,)
    order: Order = USUAL

    def to_theirs(self, name: str) -> str | None:
        """The name in the file of our parameter `name`; None if this row is not about it."""
        found = _pattern(self.ours, "kernel|scale|bias").fullmatch(name)
        if found is None:
            return None
        fields = found.groupdict()
        leaf = "bias" if fields.pop("leaf", "") == "bias" else "weight"
        return self.theirs.format(**fields).replace("*", leaf)

    def to_ours(self, name: str, axes: int) -> str | None:
        """Our name of the file's tensor `name` that has so many axes; None as above."""
        found = _pattern(self.theirs, "weight|bias").fullmatch(name)
        if found is None:
            return None
        fields = found.groupdict()
        leaf = fields.pop("leaf", "")
        if leaf == "weight":
            leaf = "scale" if axes == 1 else "kernel"
        return self.ours.format(**fields).replace("*", leaf)


@functools.cache
def _pattern(template: str, leaves: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\*", f"(?P<leaf>{leaves})")
    escaped = escaped.replace(r"\{part\}", r"(?P<part>[a-z]\w*)")
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", escaped))


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one parameter is in a file.

    Attributes:
      ours: our name.
      theirs: the file's.
      shape: ours.
      layouts: as in `Row`.
      order: as in `Row`.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    layouts: tuple[Layout, ...]
    order: Order = USUAL

    @property
    def plain(self) -> tuple[int, ...]:
        """The shape in PyTorch without axes of length 1 added."""
        return self.order.plain(self.shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes that it may have in a file."""
        return [layout.shape(self.plain) for layout in self.layouts]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """Our float32 array, with memory of its own, from a tensor in one of the `shapes`."""
        array = self.order.from_torch(tensor.reshape(self.plain))
        return np.array(array, dtype=np.float32, order="C")

    def write(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `read`, in the first of the `shapes`."""
        return np.ascontiguousarray(self.order.to_torch(array).reshape(self.shapes[0]))


def key_map(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Entry]:
    """Places the parameters of a model in a format.

    Args:
      rows: the format's table; of the rows about a name the first counts.
      shapes: our names and shapes.

    Returns:
      Entries by our name; parameters the format has no place for have none.
    """
    rows = tuple(rows)
    entries = {}
    for ours, shape in shapes.items():
        for row in rows:
            theirs = row.to_theirs(ours)
            if theirs is not None:
                entries[ours] = Entry(ours, theirs, tuple(shape), row.layouts, row.order)
                break
    return entries


def our_names(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Our names of those of a file's tensors that a table knows, without knowing the model."""
    rows = tuple(rows)
    names = {}
    for theirs, shape in shapes.items():
        found = (row.to_ours(theirs, len(shape)) for row in rows)
        ours = next((name for name in found if name is not None), None)
        if ours is not None:
            names[theirs] = ours
    return names


def apply(
    tensors: Mapping[str, np.ndarray],
    entries: Mapping[str, Entry],
    *,
    droppable: Iterable[str] = (),
    duplicates: Mapping[str, str] | None = None,
    what: str,
) -> dict[str, np.ndarray]:
    """Reads every parameter out of a file's tensors, and accounts for every tensor.

    Args:
      tensors: what the file holds.
      entries: by our name, from `key_map`.
      droppable: patterns (regular expressions) of tensors that may stay unused.
      duplicates: tensors that may stay unused because they are others again; they must be equal.
      what: the beginning of the error's sentence: which file as which model.

    Returns:
      Float32 arrays by our name.

    Raises:
      InputError: a tensor is unused, missing, of another shape, not floating point of at most 32
        bits, not finite, or no duplicate after all. One error lists them all.
    """
    duplicates = duplicates or {}
    used = {entry.theirs for entry in entries.values()}
    may_drop = [re.compile(pattern) for pattern in droppable]
    offences, arrays = [], {}
    for ours, entry in entries.items():
        if entry.theirs not in tensors:
            offences.append(f"missing: `{entry.theirs}` {entry.shapes[0]}")
            continue
        tensor = tensors[entry.theirs]
        if tensor.shape not in entry.shapes:
            offences.append(
                f"wrong shape: `{entry.theirs}` is {tensor.shape}, not"
                f" {' or '.join(map(str, entry.shapes))}"
            )
        elif tensor.dtype.name not in _FLOATS:
            offences.append(
                f"wrong type: `{entry.theirs}` is {tensor.dtype.name}, not {' or '.join(_FLOATS)}"
            )
        else:
            arrays[ours] = entry.read(tensor)
            progress.moved(tensor.nbytes)
            if not np.all(np.isfinite(arrays[ours])):
                offences.append(f"not finite: `{entry.theirs}` has infinite values or NaN")
    for theirs, tensor in tensors.items():
        if theirs in used or any(pattern.fullmatch(theirs) for pattern in may_drop):
            continue
        original = duplicates.get(theirs)
        if original is None:
            offences.append(f"unknown: `{theirs}` {tensor.shape}")
        elif original not in tensors or not np.array_equal(tensor, tensors[original]):
            offences.append(f"not the same: `{theirs}` must equal `{original}`")
    if offences:
        raise InputError(f"{what} does not fit:\n  " + "\n  ".join(offences))
    return arrays
