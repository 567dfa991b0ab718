"""A lower bound of the time that a compiled program takes on a chip, from three sources.

An instruction takes at least as long as its schedule is (`schedules.py`), as its operands and
results need to pass between the chip and its memory, and as the matrix units need for its products
at their peak. The bound is the sum, over all instructions that the cores execute, of the longest
of the three: perfect overlap inside an instruction, none between two. It leaves out stalls, waiting
for a copy to arrive, copies that run beside other instructions (such as those into the cores' own
memory, ahead of use), and the scalar code between instructions.

Of GPUs there are no schedules: their bound is by bytes and products alone, and leaves out how long
arithmetic takes that is no product, and launches.
"""

import collections
import dataclasses
from collections.abc import Mapping

from convnext_jax.planning.machines import Chip
from convnext_jax.planning.programs import Program

# Share of a program, by the compiler's own estimate, of which there must be schedules.
_KNOWN_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one run of a program.

    Attributes:
      bound: sum over its instructions of the longest of the next three.
      schedule: sum of the lengths of their schedules.
      memory: their bytes over the memory's bandwidth.
      matrix: their matrix products over the peak.
      without_schedule: number of instructions whose schedule is not known; it counts as nothing.
      bound_in: parts of the bound, by the scopes that `read_program` was asked for.
    """

    bound: float
    schedule: float
    memory: float
    matrix: float
    without_schedule: int
    bound_in: Mapping[str, float]


def lower_bound(
    program: Program, schedules: Mapping[str, int] | None, chip: Chip
) -> Estimate | None:
    """The least time of a program.

    Args:
      program: what was compiled.
      schedules: cycles by name of instruction. Of instructions that do the same the compiler writes
        one. None: it writes none, as for GPUs, and only bytes and products count.
      chip: which executes it.

    Returns:
      None where the schedules are not those of this program, or of less than nine tenths of it.
    """
    of_name = schedules or {}
    by_likeness = {
        found.likeness: of_name[found.name] for found in program.executed if found.name in of_name
    }
    bound = schedule = memory = matrix = 0.0
    bound_in: dict[str, float] = collections.defaultdict(float)
    known = missing = 0
    for found in program.executed:
        cycles = of_name.get(found.name, by_likeness.get(found.likeness))
        missing += cycles is None
        known += 0 if cycles is None else found.times * found.cycles
        parts = (
            cycles / chip.clock if cycles else 0.0,
            found.memory_bytes / chip.bandwidth,
            found.matrix_flops / chip.peak,
        )
        schedule, memory, matrix = (
            total + found.times * part
            for total, part in zip((schedule, memory, matrix), parts, strict=True)
        )
        bound += found.times * max(parts)
        if found.scope is not None:
            bound_in[found.scope] += found.times * max(parts)
    if schedules is None:
        missing = 0
    elif not by_likeness or known < _KNOWN_SHARE * program.cycles:
        return None
    return Estimate(bound, schedule, memory, matrix, missing, dict(bound_in))
