"""Kills runs of two processes at random moments and starts them again: `make chaos`.

Each kill has a run of its own. It is killed once, started again, and must then have ended with the
bits, batches and losses of a run that nothing happened to; on another number of processes with the
same batches, and losses that differ by the order of sums. What happens when is drawn from a seed;
where in a step, a save or an evaluation a signal then lands is up to the machine.

Writes `benchmarks/results/reliability.json` and the table of docs/reliability.md. Exit status: 0
all runs were continued; 1 one was not, and nothing is written.
"""

import argparse
import dataclasses
import json
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from e2e import commands

from benchmarks.readme import RESULTS, machine, rewrite
from convnext_jax.data.digits import ensure_prepared

STEPS = 40
EVALUATED = (13, 26)  # and the last
OVERRIDES = (
    *commands.TINY,
    f"--config.num_steps={STEPS}",
    "--config.log_every_steps=1",
    "--config.log_batch_hashes=True",
    "--config.checkpoint.every_steps=4",
    "--config.eval_every_epochs=0.6",
)
KINDS = ("one", "all", "save", "evaluation", "sigterm")
# Attempts at a moment that may have passed before the signal is sent.
ATTEMPTS = 5
# The order of float32 sums differs between numbers of devices, and AdamW amplifies that: see
# test_devices.py.
ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Kill:
    """What is done to a run.

    Attributes:
      kind: one of `KINDS`: SIGKILL to one process, or to all, anywhere; to some during a save, or
        during an evaluation; SIGTERM to some.
      victims: indices of the processes, of 0 and 1, that get the signal.
      step: it comes once this step is recorded, and for a save or an evaluation at the next.
      delay: seconds after that.
      processes: how many continue, with one device each.
    """

    kind: str
    victims: tuple[int, ...]
    step: int
    delay: float
    processes: int = 2

    @property
    def signal(self) -> signal.Signals:
        """What the victims get."""
        return signal.SIGTERM if self.kind == "sigterm" else signal.SIGKILL

    def moment(self, workdir: Path) -> Callable[[], bool]:
        """Says whether it has come."""

        def reached() -> bool:
            return commands.last_step(workdir) >= self.step

        def saving() -> bool:
            return reached() and any("tmp" in name for name in commands.saved(workdir))

        def evaluating() -> bool:
            return reached() and str(self.step) not in commands.saved(workdir)

        return {"save": saving, "evaluation": evaluating}.get(self.kind, reached)


def draw(seed: int, count: int) -> list[Kill]:
    """The kills of a seed: all kinds in turn, and two more that continue on 1 and 4 processes."""
    rng = random.Random(seed)
    kills = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        some = rng.choice([(0,), (1,), (0, 1)])
        victims = {"one": (rng.randrange(2),), "all": (0, 1)}.get(kind, some)
        step = rng.choice(EVALUATED) if kind == "evaluation" else rng.randrange(STEPS - 10)
        kills.append(Kill(kind, victims, step, rng.uniform(0, 0.05)))
    for processes in (1, 4):
        step, delay = rng.randrange(8, STEPS - 10), rng.uniform(0, 0.05)
        kills.append(Kill("all", (0, 1), step, delay, processes))
    return kills


def strike(kill: Kill, workdir: Path, env: dict[str, str]) -> list[int]:
    """Starts a run and kills it; returns how its processes ended.

    Raises:
      AssertionError: it ended before, or did not end; with what it printed.
    """
    processes = commands.start_processes(workdir, env, 2, *OVERRIDES)
    commands.wait_for(processes, kill.moment(workdir))
    time.sleep(kill.delay)
    for victim in kill.victims:
        processes[victim].send_signal(kill.signal)
    return [status for status, *_ in commands.end_of(processes)]


def finish(kill: Kill, workdir: Path, env: dict[str, str]) -> int:
    """Starts the run again, to its end; returns the step that it went on from, 0 for the start.

    Raises:
      AssertionError: it did not end well; with what it printed.
    """
    processes = commands.start_processes(workdir, env, kill.processes, *OVERRIDES)
    ends = commands.end_of(processes)
    assert all(status == 0 for status, *_ in ends), ends
    resumed = re.search(r"resuming after step (\d+)", ends[0][1])
    return int(resumed[1]) if resumed else 0


def survive(kill: Kill, folder: Path, expected: Path, env: dict[str, str]) -> dict[str, Any]:
    """Kills a run, continues it, and compares it.

    Args:
      kill: what is done.
      folder: for the run's directory, and for those of attempts that came too late.
      expected: directory of the run that nothing happened to.
      env: of all processes.

    Returns:
      Plain values by name.

    Raises:
      AssertionError: it is another run; or its moment could not be met.
    """
    for attempt in range(ATTEMPTS):
        workdir = folder / str(attempt)
        statuses = strike(kill, workdir, env)
        if any(statuses):
            break
    else:
        raise AssertionError(f"{kill} came too late {ATTEMPTS} times")
    if kill.kind == "sigterm":
        assert statuses == [75, 75], statuses
    else:
        assert all(statuses), statuses  # no process takes a broken run for a whole one
    reached = commands.last_step(workdir)
    resumed = finish(kill, workdir, env)
    assert commands.hashes(workdir) == commands.hashes(expected)
    found, wanted = commands.losses(workdir), commands.losses(expected)
    assert found.keys() == wanted.keys() == set(range(1, STEPS + 1))
    away = max(abs(found[step] - wanted[step]) / wanted[step] for step in wanted)
    if kill.processes == 2:
        assert away == 0.0
        commands.assert_identical(workdir, expected, STEPS)
    assert away < ROUNDING
    return dataclasses.asdict(kill) | {
        "signal": kill.signal.name,
        "statuses": statuses,
        "recorded": reached,
        "resumed": resumed,
        "identical": kill.processes == 2,
        "loss_difference": float(np.float64(away)),
    }


def reference(workdir: Path, env: dict[str, str]) -> None:
    """The run that nothing happens to."""
    ends = commands.end_of(commands.start_processes(workdir, env, 2, *OVERRIDES))
    assert all(status == 0 for status, *_ in ends), ends
    assert len(set(commands.hashes(workdir).values())) == STEPS  # they tell batches apart


def table(result: dict[str, Any]) -> str:
    """The kills, as Markdown."""
    rows = result["kills"]
    same = sum(row["identical"] for row in rows)
    lines = [
        f"Seed {result['seed']}, on {result['machine']}: {same} of {same} runs of two processes"
        f" ended bit-identical; on 1 and 4 processes the batches were the same and the losses"
        f" within {max(row['loss_difference'] for row in rows):.0e}.",
        "",
        "| when | signal, to | ended with | recorded steps | went on | from step | result |",
        "|---|---|---|---|---|---|---|",
    ]
    where = {"save": "in a save", "evaluation": "at an evaluation"}
    for row in rows:
        victims = "both" if len(row["victims"]) == 2 else f"process {row['victims'][0]}"
        statuses = ", ".join(map(str, row["statuses"]))
        outcome = "identical" if row["identical"] else f"losses within {row['loss_difference']:.0e}"
        lines.append(
            f"| {where.get(row['kind'], 'anywhere')} | {row['signal']}, {victims} | {statuses} |"
            f" {row['recorded']} | {row['processes']} process(es) | {row['resumed']} | {outcome} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        ensure_prepared(data)
        env = commands.environment(data, folder / "compiled")
        expected = folder / "expected"
        reference(expected, env)
        for number, kill in enumerate(draw(arguments.seed, arguments.kills)):
            print(kill, flush=True)
            rows.append(survive(kill, folder / f"run{number}", expected, env))
            print(f"  ended {rows[-1]['statuses']}, went on from {rows[-1]['resumed']}", flush=True)
    result = {"seed": arguments.seed, "steps": STEPS, "machine": machine(), "kills": rows}
    (RESULTS / "reliability.json").write_text(json.dumps(result, indent=2) + "\n")
    page = commands.ROOT / "docs" / "reliability.md"
    page.write_text(rewrite(page.read_text(), {"kills": table(result)}))


if __name__ == "__main__":
    main()
