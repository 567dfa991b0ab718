"""Reading a compiled program's text: what it exchanges between chips, and what it executes.

The text is what `jax.stages.Compiled.as_text()` gives for one chip's share of the program.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from convnext_jax.planning.hlo import (
    Computation,
    Instruction,
    array_bytes,
    arrays_of,
    read_computations,
    top_level,
)
from convnext_jax.planning.work import likeness, matrix_flops, memory_bytes

# Kinds of exchange between chips. Each may also be written as a pair KIND-start, KIND-done.
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_CALLED = re.compile(r"(\w+)=(?:\{([^{}]*)\}|(%?[\w.\-]+))")
_CALLS = {"calls", "to_apply", "body", "condition", "branch_computations", "called_computations"}
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Operations whose computations are executed instruction by instruction.
_CONTROL = {"while", "call", "conditional"}
# Operations by which nothing is computed or moved.
_NO_KERNELS = _CONTROL | {
    *("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "async-start", "async-update"),
}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What they begin with is part of their shape.
_WITH_INPUT = ("all-gather-start", "reduce-scatter-start", "collective-permute-start")
# Groups of chips: listed, numbered, or the axes of a mesh along which they lie, maybe part of one.
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{('[^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
# Fusions that are nothing but an exchange, as the compiler for TPUs writes a reduce-scatter.
_SCATTER = "all-reduce-scatter"
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
      group: numbers of the chips of one group that exchange with each other; empty: all do.
    """

    kind: str
    dtypes: tuple[str, ...]
    bytes: int
    times: int
    between_slices: bool = False
    group: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The kind, and where."""
        return f"{self.kind} between slices" if self.between_slices else self.kind


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction that occupies a chip's cores.

    Attributes:
      name: of the instruction.
      likeness: a text that instructions share which are compiled into the same code.
      times: how often a run of the program executes it.
      cycles: the compiler's estimate of one time.
      memory_bytes: read from and written to the chip's memory, of one time.
      matrix_flops: operations of matrix products and convolutions, of one time.
      scope: which of the scopes that were asked for it is in; None: in none.
    """

    name: str
    likeness: str
    times: int
    cycles: int
    memory_bytes: int
    matrix_flops: int
    scope: str | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """What was read.

    Attributes:
      collectives: in the order of the text.
      executed: what the cores do: fusions, kernels, and instructions of which the compiler
        estimates cycles; not copies that run beside them, exchanges, and arithmetic on scalars.
      unknown_loops: loops whose number of rounds the text does not say; they count once.
    """

    collectives: tuple[Collective, ...]
    executed: tuple[Executed, ...]
    unknown_loops: int

    @property
    def cycles(self) -> int:
        """Sum of the compiler's estimates; 0 where it writes none, as for CPUs."""
        return sum(found.times * found.cycles for found in self.executed)

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


def read_program(
    text: str, scopes: Mapping[str, Sequence[int]] | None = None, kernels: bool = False
) -> Program:
    """Reads the text of an optimised program.

    Args:
      text: in HLO's notation.
      scopes: names of `jax.named_scope`, or of operations such as top_k, that are to be told apart
        (of several the first counts); each with the rounds of its loops whose number the text does
        not say, the outermost first.
      kernels: whether each operation is code of its own, as for GPUs.

    Raises:
      ValueError: the text has no entry computation.
    """
    occupies = _is_kernel if kernels else _occupies
    computations, entry = read_computations(text)
    # A computation stands before those that call it; so in reverse all calls of one are counted
    # before its own calls are.
    runs: dict[str, int] = collections.defaultdict(int, {entry: 1})
    inside: set[str] = set()  # of fusions, which are executed as one
    exchanges: list[Collective] = []
    executed: list[Executed] = []
    chains: set[str] = set()
    scopes = scopes or {}
    inherited: dict[str, str | None] = {}  # the scope of what calls a computation
    unknown = 0
    for name in reversed(computations):
        times = runs[name]
        computation = computations[name]
        for found in computation.instructions.values() if times else ():
            line, operation = found.line, found.operation
            scope, depth = _scope(line, scopes)
            scope = scope or inherited.get(name)
            rounds = 1
            if operation == "while":
                known = _rounds(found, computations)
                if known is None and scope is not None:
                    known = dict(enumerate(scopes[scope])).get(depth)
                unknown += known is None
                rounds = 1 if known is None else known
            for called in _called(line):
                if called in computations:
                    runs[called] += times * rounds
                    inherited.setdefault(called, scope)
                    if name in inside or operation not in _CONTROL:
                        inside.add(called)
            if name not in inside and occupies(found):
                each = _executed(found, times, computation, computations)
                executed.append(dataclasses.replace(each, scope=scope))
            kind = operation.removesuffix("-start")
            handed_over = _BETWEEN_SLICES.search(line) if kind == "send" else None
            if handed_over is not None:
                what = handed_over[1].lower().replace("_", "-")
                part = _collective(what, operation, top_level(found.shape)[0], line, times)
                exchanges.append(dataclasses.replace(part, between_slices=True))
            if kind not in COLLECTIVES:
                continue
            chain = _CHAIN.search(line)
            if chain is None or chain[1] not in chains:
                scattered = kind == "all-reduce" and name.startswith(_SCATTER)
                exchange = _collective(kind, operation, found.shape, line, times)
                exchanges.append(
                    dataclasses.replace(exchange, kind="reduce-scatter") if scattered else exchange
                )
            if chain is not None:
                chains.add(chain[1])
    return Program(tuple(reversed(exchanges)), tuple(reversed(executed)), unknown)


def _is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction occupies the cores of a GPU, or its copying."""
    operation = instruction.operation
    if operation in _NO_KERNELS or operation.endswith("-done"):
        return False
    return operation.removesuffix("-start") not in COLLECTIVES


def _occupies(instruction: Instruction) -> bool:
    """Whether an instruction occupies the cores of a TPU."""
    kind = instruction.operation.removesuffix("-start").removesuffix("-done")
    if kind in COLLECTIVES or (instruction.attribute("calls") or "").startswith(_SCATTER):
        return False
    if instruction.operation == "custom-call":
        return 'custom_call_target="tpu_custom_call"' in instruction.attributes
    alone = instruction.operation in ("fusion", "convolution", "dot")
    return alone or _CYCLES.search(instruction.line) is not None


def _executed(
    instruction: Instruction,
    times: int,
    computation: Computation,
    computations: dict[str, Computation],
) -> Executed:
    cycles = _CYCLES.search(instruction.line)
    return Executed(
        name=instruction.name,
        likeness=likeness(instruction, computation, computations),
        times=times,
        cycles=int(cycles[1]) if cycles else 0,
        memory_bytes=memory_bytes(instruction, computation, computations),
        matrix_flops=matrix_flops(instruction, computation, computations),
    )


def _scope(line: str, scopes: Iterable[str]) -> tuple[str | None, int]:
    """The first of the scopes that an instruction is in, and in how many of its loops."""
    name = _OP_NAME.search(line)
    if name is not None:
        for scope in scopes:
            found = re.search(rf"\b{re.escape(scope)}\b(.*)", name[1])
            if found is not None:
                return scope, found[1].count("while/body")
    return None, 0


def _called(line: str) -> list[str]:
    names = []
    for key, several, one in _CALLED.findall(line):
        if key in _CALLS:
            names += [name.strip().lstrip("%") for name in (several or one).split(",")]
    return names


def _rounds(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    known = _TRIPS.search(loop.line)
    if known:
        return int(known[1])
    # A counter that starts at zero and stays below a constant, as `lax.scan` makes it; where the
    # compiler took several rounds together, it grows by as many.
    condition, body = (computations.get(loop.attribute(key) or "") for key in ("condition", "body"))
    if condition is None or body is None:
        return None
    below = any("direction=LT" in each.line for each in condition.instructions.values())
    bounds = [_constant(each) for each in condition.instructions.values()]
    bounds = [bound for bound in bounds if bound is not None]
    if len(bounds) != 1 or not below:
        return None
    return -(-bounds[0] // _growth(condition, body))


def _constant(instruction: Instruction | None) -> int | None:
    """The value of an integer constant; None: it is something else."""
    if instruction is None or instruction.operation != "constant":
        return None
    found = re.match(r"[su]32\[\]", instruction.shape) and re.search(
        r"constant\((\d+)\)", instruction.line
    )
    return int(found[1]) if found else None


def _growth(condition: Computation, body: Computation) -> int:
    """By how much a loop's counter, which its condition looks at, grows in its body."""
    place = next(
        (
            each.attribute("index")
            for each in condition.instructions.values()
            if each.operation == "get-tuple-element" and re.match(r"[su]32\[\]", each.shape)
        ),
        None,
    )
    results = next((e.operands for e in body.instructions.values() if e.is_root), ())
    if place is None or int(place) >= len(results):
        return 1
    counter = body.instructions.get(results[int(place)])
    if counter is None or counter.operation != "add":
        return 1
    steps = [_constant(body.instructions.get(operand)) for operand in counter.operands]
    return max([1, *(step for step in steps if step is not None)])


def _collective(kind: str, operation: str, shape: str, line: str, times: int) -> Collective:
    parts = top_level(shape)
    if operation in _WITH_INPUT and len(parts) > 1:
        shape = parts[1]  # (what goes in, what comes out, bookkeeping)
    group = _group(line)
    size = array_bytes(shape)
    if kind == "reduce-scatter":
        size *= max(len(group), 1)
    dtypes = sorted({array.dtype for array in arrays_of(shape)})
    return Collective(kind, tuple(dtypes), size, times, group=group)


def _group(line: str) -> tuple[int, ...]:
    """Chips that exchange with each other, of one group; none where the line does not say."""
    listed = _GROUPS.search(line)
    if listed is not None:
        return _numbers(listed[1])
    counted = _COUNTED.search(line)
    if counted is not None:
        size, sides, order = counted.groups()
        return tuple(_counted(sides, order).reshape(-1, int(size))[0].tolist())
    mesh = _MESH.search(line)
    if mesh is None:
        return ()
    lengths = {name: int(length) for name, length in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    # Each axis in three: what is before the part that is meant, that part, and what is behind.
    chosen = {
        name: (int(before), int(part)) if part else (1, lengths[name])
        for name, before, part in _AXIS.findall(mesh[4])
    }
    sides, along = [], []
    for name, length in lengths.items():
        before, part = chosen.get(name, (length, 1))
        sides += [before, part, length // (before * part)]
        along += [slice(1), slice(None), slice(1)]
    chips = str(math.prod(sides)) if mesh[2] is None else mesh[2]
    return tuple(_counted(chips, mesh[3]).reshape(sides)[tuple(along)].ravel().tolist())


def _counted(sides: str, order: str | None) -> np.ndarray:
    """All numbers from 0, in an array of such sides whose axes are then put in another order."""
    numbers = np.arange(math.prod(_numbers(sides))).reshape(_numbers(sides))
    return numbers if order is None else numbers.transpose(_numbers(order))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
