"""The lower bound of a program's time: arithmetic that can be done by hand."""

import argparse
import dataclasses

import pytest
from test_work import TWINS

from convnext_jax import plan as command
from convnext_jax.errors import InputError
from convnext_jax.planning import compiling
from convnext_jax.planning.compiling import Variant
from convnext_jax.planning.estimate import lower_bound
from convnext_jax.planning.machines import CHIPS, parse_machine
from convnext_jax.planning.programs import Executed, Program, read_program

V5E = CHIPS["v5e"]  # 1.5 GHz, 819 GB/s, 197 TFLOP/s


def program(*executed):
    return Program((), executed, 0)


def test_the_longest_of_three_of_each_instruction():
    long = Executed("long", "1", 1, 100, 0, 0)
    moving = Executed("moving", "2", 3, 100, 819_000, 0)  # 1 us
    multiplying = Executed("multiplying", "3", 2, 100, 819, 394_000_000, "products")  # 2 us
    schedules = {"long": 7500, "moving": 300, "multiplying": 1500}  # 5, 0.2 and 1 us
    found = lower_bound(program(long, moving, multiplying), schedules, V5E)
    assert found is not None
    assert found.bound == pytest.approx((5 + 3 * 1 + 2 * 2) * 1e-6)
    assert found.schedule == pytest.approx((5 + 3 * 0.2 + 2 * 1) * 1e-6)
    assert found.memory == pytest.approx((3 * 1 + 2 * 0.001) * 1e-6)
    assert found.matrix == pytest.approx(2 * 2 * 1e-6)
    assert found.without_schedule == 0
    assert found.bound_in == pytest.approx({"products": 2 * 2e-6})


def test_twins_share_a_schedule():
    # `b` does what `a` does; of `c`, `d` and `e` nothing is known but their bytes.
    found = lower_bound(read_program(TWINS), {"a": 3000, "other": 5}, V5E)
    assert found is not None
    assert found.schedule == pytest.approx(2 * 2e-6)
    assert found.without_schedule == 3


def test_no_schedules_no_bound():
    known, unknown = (Executed(name, name, 1, 100, 10, 0) for name in ("known", "unknown"))
    assert lower_bound(program(known), {}, V5E) is None
    assert lower_bound(program(known), {"another program's": 5}, V5E) is None
    assert lower_bound(program(known, unknown), {"known": 5}, V5E) is None
    short = dataclasses.replace(unknown, cycles=10)
    assert lower_bound(program(known, short), {"known": 5}, V5E) is not None


class Compiled:
    """Stands in for what JAX gives."""

    def __init__(self, text):
        self.as_text = lambda: text
        sizes = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0)
        named = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        self.memory_analysis = lambda: argparse.Namespace(**named)
        self.cost_analysis = lambda: {"bytes accessed": 0.0}


ESTIMATED = TWINS.replace('"n":"1"', '"estimated_cycles":"6000"')


def test_a_step_with_and_without_schedules():
    machine = parse_machine("v5e:4x4")
    found = compiling.read_compiled(Compiled(ESTIMATED), machine, 4096, {"a": 3000})
    assert found["compute_from"] == "schedules"
    assert found["compute_seconds"] == pytest.approx(2 * 2e-6, rel=0.1)  # and 5 arrays of 4 kB
    assert found["compiler_seconds"] == pytest.approx(4e-6)
    assert found["images_per_second"] == pytest.approx(4096 / found["compute_seconds"])
    without = compiling.read_compiled(Compiled(ESTIMATED), machine, 4096, {})
    assert without["compute_from"] == "compiler"
    assert without["compute_seconds"] == without["compiler_seconds"] == pytest.approx(4e-6)
    assert without["schedule_seconds"] is without["without_schedule"] is None


CONFIG = ["--config", "configs/imagenet1k.py:tiny", "--topology", "v5e:4x4"]


def measured(job, quick=False):
    """Stands in for compiling; the first row's numbers are the issue's."""
    text = ESTIMATED if job.variant.remat else ESTIMATED.replace("6000", "0")
    found = compiling.read_compiled(Compiled(text), job.machine, 4096, {"a": 3000})
    sizes = dict.fromkeys(("parameters", "optimizer", "moving average", "batch"), 2**30)
    row = {"variant": str(job.variant), "fsdp": job.variant.fsdp, "per_device_batch": 128}
    row |= {"quick": quick, "micro_batches": 2, "flops": 7e12} | found
    parts = dict.fromkeys(("start", "steps", "evaluations", "saves"), 60.0)
    row["memory"] |= sizes
    return row | {"run": parts, "hours": 6.25}


@pytest.fixture
def compiled(monkeypatch):
    tried = []

    def measure(job, quick=False):
        tried.append((job.variant, quick))
        return measured(job, quick)

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "describe_devices", lambda machine: [None] * machine.size)
    monkeypatch.setattr(command, "search", lambda job, row, left, progress: (128, left))
    return tried


def test_a_layout_that_cannot_be_is_refused_before_any_is_compiled(compiled, capsys):
    with pytest.raises(SystemExit) as ending:
        command.main([*CONFIG, "--fsdp", "3"])
    assert ending.value.code and not compiled
    (line,) = capsys.readouterr().err.splitlines() or [str(ending.value.code)]
    assert line.endswith("`--fsdp` (=3) must be positive and divide the number of chips (=16)")


def test_the_config_as_it_is_comes_first(compiled, capsys):
    own = ["--config.mesh.fsdp=16", "--config.model.remat=True"]
    command.main([*CONFIG, "--compilations", "2", "--price", "1.2", *own])
    assert compiled == [
        (Variant(16, True), True),
        (Variant(16, True), False),
        (Variant(1, False), False),
    ]
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    # Each answer before the next is compiled, the first one in haste.
    assert lines[0].startswith("compiling fsdp 16, remat for v5e:4x4 in haste")
    assert lines[1].startswith("first answer, of a slower program than the run's: fsdp 16, remat")
    assert lines[2].startswith("compiling fsdp 16, remat")
    assert lines[3].startswith("fsdp 16, remat: fits, 16.00 GiB free")
    assert all(lines[n].endswith("ms at least, the run 6.2 h, $120.00") for n in (1, 3))  # 6.25 h
    assert lines[4].startswith("compiling replicated")
    for row in ("compute, at least", "  schedules alone", "compiler's estimate", "cost"):
        assert f"\n{row} " in printed.out
    assert "NO SCHEDULES" not in printed.out and "IN HASTE" not in printed.out


def test_quick_ends_with_the_first_answer(compiled, capsys):
    command.main([*CONFIG, "--quick", "--price", "1.2"])
    assert compiled == [(Variant(1, False), True)]
    printed = capsys.readouterr().out
    assert "COMPILED IN HASTE" in printed and "\ncost " in printed and "$120.00" in printed


def test_programs_wait_for_the_whole(compiled):
    command.main([*CONFIG, "--json", "--compilations", "1"])
    assert compiled == [(Variant(1, False), False)]


def test_a_plan_without_schedules_says_so(compiled, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "measure", lambda *job, **how: measured(*job, **how) | {"compute_from": "compiler"}
    )
    command.main([*CONFIG, "--compilations", "1"])
    printed = capsys.readouterr()
    assert "ms by the compiler's estimate, the run" in printed.err
    assert "THE COMPILER WROTE NO SCHEDULES" in printed.out
    assert "compute, at least" not in printed.out


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf"])
def test_no_price(price):
    parsed, overrides = command.parse_arguments([*CONFIG, "--price", price])
    with pytest.raises(InputError, match=r"`--price` \(=.*\) must be a positive number"):
        command.plan(parsed, overrides)
