"""The notation of compiled programs: computations, instructions and the shapes of arrays."""

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%?([\w.\-]+)$")


@dataclasses.dataclass(frozen=True)
class Array:
    """The shape of an array.

    Attributes:
      dtype: as the program writes it, such as bf16.
      sizes: of the dimensions.
      order: dimensions from the one whose elements are neighbours to the slowest; None: unknown.
      tile: sizes to whose multiples the last dimensions in memory are filled up.
      space: where it lies; 0: the chip's memory (HBM), 1: the cores' (VMEM), others hold scalars.
    """

    dtype: str
    sizes: tuple[int, ...]
    order: tuple[int, ...] | None = None
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Without padding."""
        return math.prod(self.sizes) * bits(self.dtype) // 8

    @property
    def padded_bytes(self) -> int:
        """With the padding of its tiles."""
        order = range(len(self.sizes))[::-1] if self.order is None else self.order
        sizes = [self.sizes[dimension] for dimension in order]
        tile = self.tile[::-1]  # the fastest dimension first, as `sizes`
        sizes += [1] * (len(tile) - len(sizes))
        filled = [-(-size // side) * side for size, side in zip(sizes, tile, strict=False)]
        return math.prod(filled + sizes[len(tile) :]) * bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name: of the instruction, unique in the program.
      shape: of its result, as written: an array's or a tuple's.
      operation: such as fusion.
      operands: names of the instructions whose results it takes.
      attributes: what follows the operands.
      line: the whole.
      is_root: whether its result is the computation's.
    """

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    line: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        """Of the result."""
        return arrays_of(self.shape)

    def attribute(self, name: str) -> str | None:
        """What stands behind `name=`: all between braces, or a word; None: nothing does."""
        found = re.search(rf"(?:^|[ ,]){name}=(?:\{{([^{{}}]*)\}}|%?([\w.\->]+))", self.attributes)
        return None if found is None else found[1] if found[2] is None else found[2]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation.

    Attributes:
      name: unique in the program.
      instructions: by name, in the order of the text.
    """

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Names of the instructions that are its parameters, by number."""
        found = [each for each in self.instructions.values() if each.operation == "parameter"]
        return [each.name for each in sorted(found, key=lambda each: int(each.operands[0]))]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(each for each in self.instructions.values() if each.is_root)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that take each instruction's result, by its name."""
        found: dict[str, list[Instruction]] = {}
        for each in self.instructions.values():
            for operand in dict.fromkeys(each.operands):
                found.setdefault(operand, []).append(each)
        return found


def read_computations(text: str) -> tuple[dict[str, Computation], str]:
    """Takes a program's text apart.

    Args:
      text: in HLO's notation.

    Returns:
      Its computations by name, each before those that call it, and the name of the entry.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    current: Computation | None = None
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start is not None:
            current = computations.setdefault(start[2], Computation(start[2], {}))
            entry = start[2] if start[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)) is not None:
            end = _closing(line, match.end())
            found = Instruction(
                name=match[2],
                shape=match[3],
                operation=match[4],
                operands=_operands(line[match.end() : end]),
                attributes=line[end + 1 :],
                line=line,
                is_root=match[1] is not None,
            )
            current.instructions[found.name] = found
    if entry is None:
        raise ValueError("the text must have an entry computation")
    return computations, entry


@functools.lru_cache(maxsize=2**14)
def arrays_of(shape: str) -> list[Array]:
    """All arrays in a shape such as `(f32[8,2]{1,0:T(8,128)S(1)}, pred[])`."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        order, _, rest = layout.partition(":")
        tile, space = _TILE.search(rest), _SPACE.search(rest)
        found.append(
            Array(
                dtype,
                tuple(int(size) for size in sizes.split(",") if size),
                tuple(int(number) for number in order.split(",") if number) if layout else None,
                tuple(int(side) for side in tile[1].split(",")) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return found


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape such as `(f32[8,2]{1,0}, pred[])`, without padding."""
    return sum(math.prod(array.sizes) * bits(array.dtype) for array in arrays_of(shape)) // 8


def bits(dtype: str) -> int:
    """Of an element; 0 of what is no number, such as a token."""
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.search(r"\d+", dtype)  # f32, bf16, u8, f8e4m3fn
    return int(width[0]) if width else 0


def top_level(shape: str) -> list[str]:
    """The parts of a tuple's shape; of anything else, itself."""
    if not shape.startswith("("):
        return [shape]
    return _split(shape[1:-1])


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _closing(line: str, begin: int) -> int:
    """Where the bracket closes that opened before `begin`; the line's end if it does not."""
    depth = 1
    for found in re.finditer(r"[()]", line[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    return len(line)


def _operands(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    parts = re.sub(r"/\*.*?\*/", "", text)
    pieces = parts.split(",") if "{" not in parts and "[" not in parts else _split(parts)
    names = [_NAME.search(piece.strip()) for piece in pieces]
    return tuple(found[1] if found else "" for found in names)
