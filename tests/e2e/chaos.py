"""Kills runs of two processes at random moments and starts them again: `make chaos`.

Each kill has a run of its own. It is killed once, started again, and must then have ended with the
bits, batches and losses of a run that nothing happened to; on another number of processes with the
same batches, and losses that differ by the order of sums. Its processes must end with the statuses
of docs/reliability.md, and leave none behind. What happens when is drawn from a seed; where in a
step, a save or an evaluation a signal then lands is up to the machine.

Writes `benchmarks/results/reliability.json` and the table of docs/reliability.md. Exit status: 0
all runs were continued; 1 one was not, and nothing is written.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from background import hear_signals
from e2e import commands

from benchmarks.readme import RESULTS, machine, rewrite
from benchmarks.rehearsal.runs import Run
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
KINDS = ("one", "all", "save", "evaluation", "sigterm", "workers", "starved", "interrupt")
# Decoding workers of each process, where they are part of it.
WORKERS = {"workers": 2, "starved": 2, "interrupt": 1}
# How a run ends that is told to go, by kind; and a process that lost another: by itself, or by
# JAX's coordination service, which process 0 has.
TOLD = {"sigterm": 75, "starved": 75, "interrupt": 130}
LOST = (76, -signal.SIGABRT)
# A run whose workers are stopped waits for a batch once no step has been done for so long.
STARVED_SECONDS = 2.0
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
        during an evaluation; SIGTERM to some; SIGKILL to one that has decoding workers; SIGTERM to
        all and their workers, who have been stopped for a while; Ctrl-C, SIGINT to all and their
        workers.
      victims: indices of the processes, of 0 and 1, that get the signal.
      step: it comes once this step is recorded, and for a save or an evaluation at the next; 1 or
        later, as processes that have not met yet wait minutes for each other.
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
        named = {"sigterm": signal.SIGTERM, "starved": signal.SIGTERM, "interrupt": signal.SIGINT}
        return named.get(self.kind, signal.SIGKILL)

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the run that is killed, and of its continuation."""
        workers = f"--config.data.workers={WORKERS.get(self.kind, 0)}"
        return (*OVERRIDES, workers)

    def moment(self, workdir: Path) -> Callable[[], bool]:
        """Says whether it has come."""

        def reached() -> bool:
            return commands.last_step(workdir) >= self.step

        def saving() -> bool:
            # Not while an old one is deleted, which has such a name too.
            names = [name for name in commands.saved(workdir) if "deleted" not in name]
            return reached() and any("tmp" in name for name in names)

        def evaluating() -> bool:
            return reached() and not commands.evaluated(workdir, self.step)

        return {"save": saving, "evaluation": evaluating}.get(self.kind, reached)


def draw(seed: int, count: int) -> list[Kill]:
    """The kills of a seed: all kinds in turn, and two more that continue on 1 and 4 processes."""
    rng = random.Random(seed)
    kills = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        some = rng.choice([(0,), (1,), (0, 1)])
        one, both = (rng.randrange(2),), (0, 1)
        victims = {"one": one, "workers": one, "save": some, "evaluation": some, "sigterm": some}
        victims = victims.get(kind, both)
        step = rng.choice(EVALUATED) if kind == "evaluation" else rng.randrange(1, STEPS - 10)
        kills.append(Kill(kind, victims, step, rng.uniform(0, 0.05)))
    for processes in (1, 4):
        step, delay = rng.randrange(8, STEPS - 10), rng.uniform(0, 0.05)
        kills.append(Kill("all", (0, 1), step, delay, processes))
    return kills


def start(workdir: Path, env: dict[str, str], count: int, *overrides: str) -> Run:
    """Starts a run as `count` processes of a device each."""
    command = commands.train_command(workdir, *overrides)
    return Run(command, workdir, env, count=count, files=None)


def strike(kill: Kill, workdir: Path, env: dict[str, str]) -> list[int]:
    """Starts a run and kills it; returns how its processes ended, 0 if the kill came too late.

    Raises:
      Broken: it ended before, or did not end.
      AssertionError: it ended otherwise than it should, or left processes behind.
    """
    with start(workdir, env, 2, *kill.overrides) as run:
        run.wait_for(kill.moment(workdir), 300, pause=0.0005)
        time.sleep(kill.delay)
        if kill.kind not in ("starved", "interrupt"):
            for victim in kill.victims:
                run.processes[victim].send_signal(kill.signal)
        else:
            workers = [p.pid for p in run.seen() if p.role == "worker"]
            if kill.kind == "starved":
                assert len(workers) >= 2 * WORKERS["starved"], workers
                signal_all(workers, signal.SIGSTOP)
                run.wait_for(unchanged(workdir, STARVED_SECONDS), 60)
            for process in run.processes:  # each has a group, as it has on a host of its own
                os.killpg(process.pid, kill.signal)
            if kill.kind == "starved":
                signal_all(workers, signal.SIGCONT)
        statuses = run.wait(300)
        left = run.left_behind()
        if any(statuses):
            said = [run.printed(index)[-3000:] for index in range(2)]
            assert as_documented(kill, statuses), (kill, statuses, said)
            assert left == 0, (kill, statuses, f"{left} processes live on", said)
        return statuses


def as_documented(kill: Kill, statuses: list[int]) -> bool:
    """Whether the processes of a run ended as docs/reliability.md says."""
    if kill.kind in TOLD:
        return statuses == 2 * [TOLD[kill.kind]]
    return all(statuses[p] in ((-9,) if p in kill.victims else LOST) for p in (0, 1))


def unchanged(workdir: Path, seconds: float) -> Callable[[], bool]:
    """Says whether a run has recorded no step for so long."""
    last, since = -1, time.monotonic()

    def holds() -> bool:
        nonlocal last, since
        if (step := commands.last_step(workdir)) != last:
            last, since = step, time.monotonic()
        return time.monotonic() - since >= seconds

    return holds


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Sends a signal to those of the processes that live."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def finish(kill: Kill, workdir: Path, env: dict[str, str]) -> int:
    """Starts the run again, to its end; returns the step that it went on from, 0 for the start.

    Raises:
      AssertionError: it did not end well; with what it printed.
    """
    with start(workdir, env, kill.processes, *kill.overrides) as run:
        statuses = run.wait(300)
        assert not any(statuses), (statuses, run.printed(), run.last_words())
        assert run.left_behind() == 0
        resumed = re.search(r"resuming after step (\d+)", run.printed())
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
    with start(workdir, env, 2, *OVERRIDES) as run:
        assert run.wait(300) == [0, 0], (run.printed(0), run.printed(1))
    assert len(set(commands.hashes(workdir).values())) == STEPS  # they tell batches apart


def table(result: dict[str, Any]) -> str:
    """The kills, as Markdown."""
    rows = result["kills"]
    same = sum(row["identical"] for row in rows)
    others = [row["loss_difference"] for row in rows if not row["identical"]]
    lines = [
        f"Seed {result['seed']}, on {result['machine']}: {same} of {same} runs of two processes"
        + (f" ({result['of']} are drawn)" if same < result["of"] else "")
        + " ended bit-identical"
        + (
            f"; on 1 and 4 processes the batches were the same and the losses within"
            f" {max(others):.0e}"
            if others
            else ""
        )
        + ". None left a process behind.",
        "",
        "| when | signal, to | ended with | recorded steps | went on | from step | result |",
        "|---|---|---|---|---|---|---|",
    ]
    where = {
        "save": "in a save",
        "evaluation": "at an evaluation",
        "workers": "with workers",
        "starved": "starved of input",
        "interrupt": "with workers",
    }
    for row in rows:
        victims = "both" if len(row["victims"]) == 2 else f"process {row['victims'][0]}"
        victims += ", their workers" if row["kind"] in ("starved", "interrupt") else ""
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
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument(
        "--go-on", action="store_true", help="with the kills that an earlier start has not reached"
    )
    arguments = parser.parse_args()
    hear_signals()
    file, rows = RESULTS / "reliability.json", []
    result = {"seed": arguments.seed, "of": arguments.kills, "steps": STEPS, "machine": machine()}
    if arguments.go_on:
        earlier = json.loads(file.read_text())
        rows = earlier["kills"] if all(earlier.get(k) == v for k, v in result.items()) else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        ensure_prepared(data)
        env = commands.environment(data, folder / "compiled")
        expected = folder / "expected"
        reference(expected, env)
        page = commands.ROOT / "docs" / "reliability.md"
        for number, kill in list(enumerate(draw(arguments.seed, arguments.kills)))[len(rows) :]:
            print(kill, flush=True)
            rows.append(survive(kill, folder / f"run{number}", expected, env))
            print(f"  ended {rows[-1]['statuses']}, went on from {rows[-1]['resumed']}", flush=True)
            file.write_text(json.dumps(result | {"kills": rows}, indent=2) + "\n")
            page.write_text(rewrite(page.read_text(), {"kills": table(result | {"kills": rows})}))


if __name__ == "__main__":
    main()
