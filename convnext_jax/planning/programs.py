"""Reading a compiled program's text: what it exchanges between chips, and its estimated cycles.

The text is what `jax.stages.Compiled.as_text()` gives for one chip's share of the program.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

# Kinds of exchange between chips. Each may also be written as a pair KIND-start, KIND-done.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(\w+)=(?:\{([^{}]*)\}|(%?[\w.\-]+))")
_CALLS = {"calls", "to_apply", "body", "condition", "branch_computations", "called_computations"}
_OPERANDS = re.compile(r"tuple\((.*?)\)(?:,|$)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Groups of chips: listed, numbered, or the axes of a mesh along which they lie, maybe part of one.
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}")
_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
# What a chip hands to its host for the other slices.
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# An exchange in pieces between which others compute: each piece has its number.
_CHAIN = re.compile(r'chain_id="(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
      kind: one of `COLLECTIVES`.
      dtypes: types of its arrays, as the program writes them, such as f32.
      bytes: of the whole arrays, seen by one chip: what an all-reduce sums, what an all-gather ends
        with, what a reduce-scatter begins with, what others send.
      times: how often a run of the program executes it.
      between_slices: whether it passes through the hosts to other slices.
    """

    kind: str
    dtypes: tuple[str, ...]
    bytes: int
    times: int
    between_slices: bool = False

    @property
    def name(self) -> str:
        """The kind, and where."""
        return f"{self.kind} between slices" if self.between_slices else self.kind


@dataclasses.dataclass(frozen=True)
class Program:
    """What was read.

    Attributes:
      collectives: in the order of the text.
      cycles: sum of the compiler's estimates of its instructions, those of loops as often as they
        run; 0 where the compiler writes none, as for CPUs.
      unknown_loops: loops whose number of rounds the text does not say; they count once.
      cycles_in: those of `cycles` that are in each of the scopes asked for.
    """

    collectives: tuple[Collective, ...]
    cycles: int
    unknown_loops: int
    cycles_in: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def dtypes(self) -> dict[str, list[str]]:
        """Types of what is exchanged, by kind."""
        kinds = collections.defaultdict(set)
        for found in self.collectives:
            kinds[found.name].update(found.dtypes)
        return {kind: sorted(names) for kind, names in kinds.items()}

    def totals(self) -> dict[str, dict[str, int]]:
        """Count and bytes of one run, by kind."""
        result: dict[str, dict[str, int]] = {}
        for found in self.collectives:
            total = result.setdefault(found.name, {"count": 0, "bytes": 0})
            total["count"] += found.times
            total["bytes"] += found.bytes * found.times
        return result


def read_program(text: str, scopes: Mapping[str, Sequence[int]] | None = None) -> Program:
    """Reads the text of an optimised program.

    Args:
      text: in HLO's notation.
      scopes: names of `jax.named_scope`, or of operations such as top_k, whose cycles are to be
        counted apart (of several the first counts); each with the rounds of its loops whose number
        the text does not say, the outermost first.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = _split(text)
    # A computation stands before those that call it; so in reverse all calls of one are counted
    # before its own calls are.
    runs: dict[str, int] = collections.defaultdict(int, {entry: 1})
    exchanges: list[Collective] = []
    chains: set[str] = set()
    cycles = unknown = 0
    scopes = scopes or {}
    cycles_in = dict.fromkeys(scopes, 0)
    inherited: dict[str, str | None] = {}  # the scope of what calls a computation
    for name in reversed(computations):
        times = runs[name]
        for line in computations[name] if times else ():
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            shape, operation = match.groups()
            found = _CYCLES.search(line)
            spent = times * int(found[1]) if found else 0
            cycles += spent
            scope, depth = _scope(line, scopes)
            scope = scope or inherited.get(name)
            if scope is not None:
                cycles_in[scope] += spent
            rounds = 1
            if operation == "while":
                known = _rounds(line, computations)
                if known is None and scope is not None:
                    known = dict(enumerate(scopes[scope])).get(depth)
                unknown += known is None
                rounds = 1 if known is None else known
            for called in _called(line):
                if called in computations:
                    runs[called] += times * rounds
                    inherited.setdefault(called, scope)
            kind = operation.removesuffix("-start")
            handed_over = _BETWEEN_SLICES.search(line) if kind == "send" else None
            if handed_over is not None:
                what = handed_over[1].lower().replace("_", "-")
                part = _collective(what, operation, _top_level(shape)[0], line, times)
                exchanges.append(dataclasses.replace(part, between_slices=True))
            if kind not in COLLECTIVES:
                continue
            chain = _CHAIN.search(line)
            if chain is None or chain[1] not in chains:
                # The compiler for TPUs writes a reduce-scatter as a fusion of this name.
                scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                found = _collective(kind, operation, shape, line, times)
                exchanges.append(
                    dataclasses.replace(found, kind="reduce-scatter") if scattered else found
                )
            if chain is not None:
                chains.add(chain[1])
    return Program(tuple(reversed(exchanges)), cycles, unknown, cycles_in)


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape such as `(f32[8,2]{1,0}, pred[])`, without padding."""
    return (
        sum(
            math.prod(int(size) for size in sizes.split(",") if size) * _bits(dtype)
            for dtype, sizes in _ARRAY.findall(shape)
        )
        // 8
    )


def _split(text: str) -> tuple[dict[str, list[str]], str]:
    computations: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start is not None:
            lines = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        else:
            lines.append(line)
    if entry is None:
        raise ValueError("the text must have an entry computation")
    return computations, entry


def _scope(line: str, scopes: Iterable[str]) -> tuple[str | None, int]:
    """The first of the scopes that an instruction is in, and in how many of its loops."""
    named = _NAME.search(line)
    name = named[1] if named else ""
    for scope in scopes:
        found = re.search(rf"\b{re.escape(scope)}\b(.*)", name)
        if found is not None:
            return scope, found[1].count("while/body")
    return None, 0


def _called(line: str) -> list[str]:
    names = []
    for key, several, one in _CALLED.findall(line):
        if key in _CALLS:
            names += [name.strip().lstrip("%") for name in (several or one).split(",")]
    return names


def _rounds(line: str, computations: dict[str, list[str]]) -> int | None:
    known = _TRIPS.search(line)
    if known:
        return int(known[1])
    # A counter that starts at zero and stays below a constant, as `lax.scan` makes it; where the
    # compiler took several rounds together, it grows by as many.
    condition, body = (
        computations.get(found[1], []) if (found := re.search(rf"{key}=%?([\w.\-]+)", line)) else []
        for key in ("condition", "body")
    )
    text = "\n".join(condition)
    bounds = re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", text)
    if len(bounds) != 1 or "direction=LT" not in text:
        return None
    return -(-int(bounds[0]) // _growth(text, body))


def _growth(condition: str, body: list[str]) -> int:
    """By how much a loop's counter, which its condition looks at, grows in its body."""
    place = re.search(r"= [su]32\[\]\S* get-tuple-element\(.*?index=(\d+)", condition)
    results = [_OPERANDS.search(line) for line in body if line.lstrip().startswith("ROOT")]
    if place is None or not results or results[0] is None:
        return 1
    names = re.findall(r"%?([\w.\-]+)(?:,|$)", re.sub(r"/\*.*?\*/| ", "", results[0][1]))
    number = int(place[1])
    counter = names[number] if number < len(names) else ""
    for line in body:
        added = re.match(rf"\s+%?{re.escape(counter)} = [su]32\[\]\S* add\((.*?)\)", line)
        for operand in added[1].split(",") if added else ():
            name = re.escape(operand.strip().lstrip("%"))
            for other in body:
                constant = re.match(rf"\s+%?{name} = [su]32\[\]\S* constant\((\d+)\)", other)
                if constant:
                    return max(int(constant[1]), 1)
    return 1


def _collective(kind: str, operation: str, shape: str, line: str, times: int) -> Collective:
    parts = _top_level(shape)
    if operation in ("all-gather-start", "collective-permute-start") and len(parts) > 1:
        shape = parts[1]  # (what goes in, what comes out, bookkeeping)
    size = array_bytes(shape)
    if kind == "reduce-scatter":
        size *= _group_size(line)
    dtypes = sorted({dtype for dtype, _ in _ARRAY.findall(shape)})
    return Collective(kind, tuple(dtypes), size, times)


def _group_size(line: str) -> int:
    """Chips that exchange with each other."""
    mesh = _MESH.search(line)
    if mesh is not None:
        lengths = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(part or lengths[name]) for name, part in _AXIS.findall(mesh[2]))
    groups = _GROUPS.search(line)
    listed, counted = groups.groups() if groups else (None, None)
    return len(listed.split(",")) if listed else int(counted or 1)


def _top_level(shape: str) -> list[str]:
    """The parts of a tuple's shape; of anything else, itself."""
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.search(r"\d+", dtype)  # f32, bf16, u8, f8e4m3fn
    return int(width[0]) if width else 0
