"""Lengths of the schedules that the TPU compiler writes: cycles of its final machine code.

A schedule is a list of bundles, of instructions that start in the same cycle. Its length is the
number of bundles, those of a loop as often as it runs. Waiting for memory, for another unit or for
an earlier result is not in it; regions that are skipped in some rounds count in all.
"""

import re
from collections.abc import Iterable
from pathlib import Path

# One of an instruction's, behind the time and before the number of the compiler's pass.
_FILE = re.compile(r"(\d+)-(.+)-\d+-final_bundles\.txt")
# Address, label, how many loops the bundle is in, the bundle.
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(L[HBE]|P[BF]|CT)?\s*:\s*(>*)\s*\{(\}| \})?")
_EXIT = re.compile(r"= scmp\.ge\.s32\.totalorder [^,;]+, (\d+) /\* loop exit test")
# A loop over pieces of arrays that are loaded, worked on and stored at the same time, piece after
# piece, runs two rounds more than there are pieces; in each of them two parts of it are skipped.
_PIPELINED = "iteration index, stage"
_PIPELINE_ROUNDS = 2


def read_schedules(folder: Path) -> dict[str, int]:
    """Reads what the compiler wrote about a program.

    Args:
      folder: with a file for each instruction that has code of its own.

    Returns:
      Cycles by the instruction's name; of one that was written several times, the last.
    """
    found = []
    for path in folder.iterdir():
        match = _FILE.fullmatch(path.name)
        if match is not None:
            found.append((int(match[1]), match[2], path))
    lengths = {}
    for _, name, path in sorted(found):
        with path.open(errors="replace") as lines:
            lengths[name] = schedule_length(lines)
    return lengths


def schedule_length(lines: Iterable[str]) -> int:
    """Cycles of one schedule.

    A loop whose number of rounds is no constant counts as one round.

    Args:
      lines: of the compiler's text.
    """
    total = 0
    loops: list[_Loop] = []

    def close() -> None:
        nonlocal total
        loop = loops.pop()
        if loops:
            loops[-1].cycles += loop.whole
        else:
            total += loop.whole

    for line in lines:
        match = _BUNDLE.match(line)
        if match is None:
            continue
        label, marks, empty = match.groups()
        # An empty bundle is written without its depth: it is where the one before it was.
        depth = loops[-1].depth if loops and empty and not marks else len(marks)
        while loops and loops[-1].depth > depth:
            close()
        if label == "LB":
            if loops and loops[-1].depth == depth:
                close()
            loops.append(_Loop(depth))
        if not loops:
            total += 1
            continue
        loop = loops[-1]
        loop.cycles += 1
        loop.pipelined |= _PIPELINED in line
        found = _EXIT.search(line)
        if found is not None:
            loop.trips = int(found[1])
    while loops:
        close()
    return total


class _Loop:
    """A loop that is being read."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.cycles = 0  # of a round
        self.trips = 1
        self.pipelined = False

    @property
    def whole(self) -> int:
        """Cycles of all rounds."""
        extra = _PIPELINE_ROUNDS if self.pipelined else 0
        return self.cycles * max(self.trips - extra, 1)
