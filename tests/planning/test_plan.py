"""Planning: what it is told, what it reads out of programs, and the programs themselves."""

import json
import math

import jax
import pytest

from convnext_jax import plan as command
from convnext_jax import sharding
from convnext_jax.config import from_dict
from convnext_jax.errors import InputError
from convnext_jax.planning import compiling, machines
from convnext_jax.planning.compiling import Job, Variant
from convnext_jax.planning.hlo import array_bytes
from convnext_jax.planning.machines import GIB, parse_machine
from convnext_jax.planning.programs import Collective, read_program
from convnext_jax.step_builder import build_step

DIGITS = "configs/digits.py"
# Mixed in groups that lie on one chip of eight, and with everything else that a step can do.
SMALL = {
    "model": {
        **{"name": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (64, 128, 128, 128)},
        "kernel_size": 3,
    },
    "data": {"global_batch": 32, "image_size": 32},
    "augment": {"mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "erasing": 0.25},
    "optim": {"warmup_epochs": 0.0},
    "num_epochs": 1.0,
}


@pytest.mark.parametrize(
    ("name", "kind", "size", "hbm"),
    [
        ("v5e:16x16", "v5e", 256, 16 * GIB),
        ("v4:4x4x8", "v4", 128, 32 * GIB),
        ("v5p:2x2x1", "v5p", 4, 95 * GIB),
        ("v6e:4x8", "v6e", 32, 32 * GIB),
        ("2xv5e:16x16", "v5e", 512, 16 * GIB),
        ("gpu:8xH100", "H100", 8, 80 * 10**9),
    ],
)
def test_machine(name, kind, size, hbm):
    machine = parse_machine(name)
    assert (machine.kind, machine.size, machine.chip.hbm) == (kind, size, hbm)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:4x4", "did you mean v4"),
        ("0xv5e:4x4", "its chip"),
        ("2xv5e:4x4x4", "2 sides of v5e"),
        ("v5e", "2 sides of v5e"),
        ("v5e:4x4x4", "2 sides of v5e"),
        ("v4:4x4", "3 sides of v4"),
        ("v5e:0x4", "2 sides of v5e"),
        ("gpu:H100", "gpu:8xH100"),
        ("gpu:12xH100", "whole hosts of 8 GPUs"),
        ("gpu:8xH10", "one of A100, H100"),
    ],
)
def test_no_machine(name, says):
    with pytest.raises(InputError, match=says):
        parse_machine(name)


@pytest.mark.parametrize("fsdp", [0, 3, 32])
def test_fsdp_must_divide_the_chips(fsdp):
    with pytest.raises(InputError, match=rf"`--fsdp` \(={fsdp}\).*\(=16\)"):
        machines.mesh_of(parse_machine("v5e:4x4"), None, fsdp)


def test_fsdp_stays_within_a_slice():
    machine = parse_machine("2xv5e:4x4")
    assert machine.slices == 2
    assert machines.mesh_of(machine, None, 16).shape == {"data": 2, "fsdp": 16}
    with pytest.raises(InputError, match=r"`--fsdp` \(=32\).*of a slice \(=16\)"):
        machines.mesh_of(machine, None, 32)


def test_matrix_units_make_the_peak():
    # (number, side) of each chip's matrix units; within 1 %, as peaks are rounded.
    units = {"v4": (8, 128), "v5e": (4, 128), "v5p": (8, 128), "v6e": (4, 256)}
    assert set(units) == set(machines.CHIPS)
    for kind, (number, side) in units.items():
        chip = machines.CHIPS[kind]
        assert math.isclose(chip.peak, number * 2 * side**2 * chip.clock, rel_tol=0.01), kind


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.optim.lrr=1"], "did you mean optim.lr"),
        (["--config.optim.lr"], "--config.KEY=VALUE"),
        (["--confg.optim.lr=1"], "is not a flag"),
    ],
)
def test_bad_flags(arguments, says):
    with pytest.raises(InputError, match=says):
        command.parse_arguments(["--config", DIGITS, "--topology", "v5e:4x4", *arguments])


def test_config_is_read_as_training_does():
    config = command.load_config(
        "configs/imagenet22k.py:xlarge", ["--config.optim.lr=0.001", "--config.model.remat=True"]
    )
    assert (config.model.name, config.optim.lr, config.model.remat) == (
        "convnext_xlarge",
        0.001,
        True,
    )


@pytest.mark.parametrize(
    ("file", "overrides", "says"),
    [
        ("configs/nothing.py", [], "there is none"),
        ("configs/imagenet22k.py:huge", [], "one of base, large, xlarge"),
        (DIGITS, ["--config.optim.lr=-1.0"], "`optim.lr`"),
        (DIGITS, ["--config.optim.lr=fast"], "fast"),
    ],
)
def test_bad_config(file, overrides, says):
    with pytest.raises(InputError, match=says):
        command.load_config(file, overrides)


def test_known_datasets_need_not_be_here(tmp_path):
    nowhere = [f"--config.data.dir={tmp_path}"]
    config = command.load_config("configs/imagenet22k.py:xlarge", nowhere)
    assert command.dataset_size(config) == (21_841, 14_197_122 - 50_000)
    config = command.load_config("configs/imagenet1k.py", nowhere)
    assert command.dataset_size(config) == (1000, 1_281_167)
    config = command.load_config("configs/imagenet1k.py", [*nowhere, "--config.data.name=food101"])
    with pytest.raises(InputError, match="food101"):
        command.dataset_size(config)


@pytest.mark.parametrize(
    ("split", "size"),
    [
        ("train", 1000),
        ("train[:]", 1000),
        ("train[:90%]", 900),
        ("train[90%:]", 100),
        ("train[:-50]", 950),
        ("train[-50:]", 50),
        ("train[10:30]", 20),
    ],
)
def test_part_of_a_split(split, size):
    assert command.split_size(split, {"train": 1000}) == size


@pytest.mark.parametrize("split", ["test", "train[90%]", "train+test", "train[a:]"])
def test_no_part_of_a_split(split):
    with pytest.raises(InputError, match="data.train_split"):
        command.split_size(split, {"train": 1000})


def test_variants():
    machine = parse_machine("v5e:4x4")
    shown = [str(variant) for variant in command.variants(machine, None, None)]
    assert shown == ["replicated", "replicated, remat", "fsdp 16", "fsdp 16, remat"]
    assert command.variants(machine, 4, True) == [Variant(4, True)]


def job(fsdp: int, machine: str = "gpu:8xH100", **data: object) -> Job:
    values = SMALL | {"data": SMALL["data"] | data}
    return Job(from_dict(values), Variant(fsdp, False), parse_machine(machine), None, 10, 1000)


def test_memory_of_the_state():
    whole, split = (compiling.analyse(job(fsdp))["memory"] for fsdp in (1, 8))
    params = job(1).step().abstract_state.params
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert whole["parameters"] == 4 * sum(sizes) == whole["moving average"]
    # Two moments, and the counters of the optimizer and its schedule.
    assert 0 <= whole["optimizer"] - 2 * whole["parameters"] <= 16
    # Four images of 32x32 and an int32 label each.
    assert whole["batch"] == split["batch"] == 4 * (32 * 32 * 3 + 4)
    # All large arrays of this model have an axis that eight divides.
    parts = [n // 8 if n >= sharding.FSDP_MIN_SIZE else n for n in sizes]
    assert split["parameters"] == 4 * sum(parts) < whole["parameters"]


def test_batch_must_divide():
    with pytest.raises(InputError, match=r"`data.global_batch` \(=30\).*\(=8\)"):
        compiling.analyse(job(1, global_batch=30))


def test_remat_costs_operations():
    plain = job(1)
    again = Job(plain.config, Variant(1, True), plain.machine, None, 10, 1000)
    assert compiling.analyse(again)["flops"] > 1.1 * compiling.analyse(plain)["flops"]


def test_refusal_of_the_compiler():
    message = "RESOURCE_EXHAUSTED: Ran out of memory. Used 25.50G of 15.75G hbm. Exceeded by 9.75G."
    assert compiling.memory_needed(message) == (int(25.5 * GIB), int(15.75 * GIB))
    assert compiling.memory_needed("RESOURCE_EXHAUSTED: no more") is None


def test_candidates():
    assert compiling.candidates(16, 4, fits=True) == [8, 16]
    assert compiling.candidates(16, 4, fits=False) == [1, 2]
    assert compiling.candidates(16, 16, fits=True) == []


@pytest.mark.parametrize(("fitting", "expected"), [(64, 64), (24, 16), (3, 2), (0, None)])
def test_search_finds_the_largest(monkeypatch, fitting, expected):
    big = job(1, global_batch=512)
    tried = []

    def measure(attempt):
        images = attempt.config.data.per_device_batch
        tried.append(images)
        return {"fits": images <= fitting}

    monkeypatch.setattr(compiling, "measure", measure)
    row = {"per_device_batch": 8, "fits": fitting >= 8}
    assert compiling.search(big, row, 10, tried.append) == (expected, 10 - len(tried) // 2)
    assert 8 not in tried


def test_search_keeps_to_its_budget(monkeypatch):
    monkeypatch.setattr(compiling, "measure", lambda attempt: {"fits": True})
    row = {"per_device_batch": 8, "fits": True}
    assert compiling.search(job(1, global_batch=512), row, 0, print) == (8, 0)


PROGRAM = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %work = f32[8]{0:T(256)} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"100"}
  %ag = f32[64]{0} all-gather(%work), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[8]) tuple(%i, %work)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%x), condition=%condition, body=%body
  %ar = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/bf16[10]{0}) all-reduce-start(%x, %y), to_apply=%sum
  %done = (f32[2,3]{1,0}, bf16[10]{0}) all-reduce-done(%ar)
  %cp = (f32[8]{0}, f32[8]{0:S(1)}, u32[]{:S(2)}, u32[]) collective-permute-start(%x), channel_id=2
  %rs = f32[8]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %last = f32[8] copy(%x), backend_config={"estimated_cycles":"7"}
}
"""


def test_reading_a_program():
    program = read_program(PROGRAM)
    assert program.cycles == 4 * 100 + 7
    assert program.unknown_loops == 0
    assert program.totals() == {
        "all-gather": {"count": 4, "bytes": 4 * 64 * 4},
        "all-reduce": {"count": 1, "bytes": 6 * 4 + 10 * 2},
        "collective-permute": {"count": 1, "bytes": 8 * 4},
        "reduce-scatter": {"count": 1, "bytes": 4 * 8 * 4},
    }
    (reduced,) = [c for c in program.collectives if c.kind == "all-reduce"]
    assert reduced.dtypes == ("bf16", "f32") == tuple(program.dtypes()["all-reduce"])


def test_pieces_of_an_exchange_count_once():
    piece = '  %p.{} = bf16[50]{{0}} all-gather(%x), frontend_attributes={{chain_id="{}"}}'
    pieces = "\n".join(piece.format(n, n // 3) for n in range(6))
    text = PROGRAM.replace("  ROOT %last", f"{pieces}\n  ROOT %last")
    gathered = read_program(text).totals()["all-gather"]
    assert gathered == {"count": 4 + 2, "bytes": 4 * 64 * 4 + 2 * 50 * 2}


def test_a_reduce_scatter_of_tpus():
    scatter = """%all-reduce-scatter.1 (input: f32[40]) -> f32[10] {
  %whole = f32[40]{0} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %part = f32[10]{0} dynamic-slice(%whole, %at)
}

ENTRY"""
    fusion = "%f = f32[10]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    text = PROGRAM.replace("ENTRY", scatter).replace("ROOT %last", f"{fusion}\n  ROOT %last")
    assert read_program(text).totals()["reduce-scatter"] == {
        "count": 2,
        "bytes": 4 * 8 * 4 + 40 * 4,
    }


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2},{1,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'c'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", 2),
    ],
)
def test_a_reduce_scatter_begins_with_the_parts_of_its_group(groups, size):
    line = f"%extra = f32[25]{{0}} reduce-scatter(%x), replica_groups={groups}, to_apply=%sum"
    program = read_program(PROGRAM.replace("ROOT %last", f"{line}\n  ROOT %last"))
    assert 100 * size in [c.bytes for c in program.collectives if c.kind == "reduce-scatter"]


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'c'}", (0, 2, 4, 6)),
        # Of eight along b those that differ in the middle of three bits.
        ("mesh['a'=2,'b'=8] {'b':(2)2}", (0, 2)),
    ],
)
def test_who_exchanges(groups, chips):
    line = f"%more = f32[25]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%sum"
    program = read_program(PROGRAM.replace("ROOT %last", f"{line}\n  ROOT %last"))
    assert chips in [c.group for c in program.collectives if c.kind == "all-reduce"]


@pytest.mark.parametrize(
    ("name", "group", "near", "far"),
    [
        ("gpu:8xH100", range(8), 200, 0),
        # A host of eight adds up, then each of them exchanges an eighth with the other host.
        ("gpu:16xH100", range(16), 200, 200 / 8 / 2),
        ("gpu:16xH100", (), 200, 200 / 8 / 2),
        ("gpu:16xH100", range(8, 16), 200, 0),
        ("gpu:32xH100", (0, 8, 16, 24), 0, 200 * 3 / 4),
        ("v5e:4x4", range(16), 200, 0),
    ],
)
def test_what_is_sent_near_and_far(name, group, near, far):
    exchange = Collective("all-reduce", ("f32",), 50, 2, group=tuple(group))
    assert compiling._sent(exchange, parse_machine(name)) == (near, far)


def test_what_goes_to_other_slices():
    line = (
        "%send = (f32[6,8]{1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=2,"
        " is_host_transfer=true, frontend_attributes={"
        '_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    other = line.replace("_xla_megascale_transfer_type", "_something_else").replace("%s", "%o")
    text = PROGRAM.replace("ROOT %last", f"{line}\n  {other}\n  ROOT %last")
    totals = read_program(text).totals()
    assert totals.pop("all-reduce between slices") == {"count": 1, "bytes": 6 * 8 * 4}
    assert totals == read_program(PROGRAM).totals()


def test_loops_of_known_and_unknown_length():
    stated = PROGRAM.replace("body=%body", 'body=%body, x={"known_trip_count":{"n":"6"}}')
    assert read_program(stated).cycles == 6 * 100 + 7
    unknown = read_program(PROGRAM.replace("constant(4)", "parameter(0)"))
    assert (unknown.cycles, unknown.unknown_loops) == (100 + 7, 1)
    with pytest.raises(ValueError, match="entry"):
        read_program("HloModule empty\n")


def test_scopes_are_told_apart():
    # A loop of a scope, whose length is not known, with another within.
    named = 'metadata={{op_name="jit(step)/transpose(jvp(search))/{}"}}'
    inner = "%again = (s32[]) while(%p), condition=%other, body=%deep, " + named.format(
        "while/body/while"
    )
    deep = """%deep (p: (s32[])) -> (s32[]) {
  %w = f32[8]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"10"}
}

%body"""
    text = (
        PROGRAM.replace("constant(4)", "parameter(0)")
        .replace("%body", deep, 1)
        .replace("  ROOT %t", f"  {inner}\n  ROOT %t")
        .replace("body=%body", f"body=%body, {named.format('while')}")
    )

    def times_in(program, scope):
        return {each.name: each.times for each in program.executed if each.scope == scope}

    program = read_program(text, {"search": (3, 5), "nothing": ()})
    assert times_in(program, "search") == {"work": 3, "w": 3 * 5}
    assert times_in(program, None) == {"last": 1}
    assert program.unknown_loops == 0
    shorter = read_program(text, {"search": (3,)})
    assert times_in(shorter, "search") == {"work": 3, "w": 3} and shorter.unknown_loops == 1
    assert times_in(read_program(text), None) == {"work": 1, "w": 1, "last": 1}


def test_loops_whose_counter_grows_by_more_than_one():
    together = (
        PROGRAM.replace("s32[]{:T(128)} constant(4)", "u32[]{:T(128)} constant(8)")
        .replace("(%i, %limit)", "(%j, %limit)")
        .replace("  %limit", "  %j = u32[]{:T(128)} get-tuple-element(%p), index=0\n  %limit")
        .replace(
            "  ROOT %t = (s32[], f32[8]) tuple(%i, %work)",
            "  %two = u32[]{:T(128)} constant(2)\n"
            "  %next = u32[]{:T(128)} add(%counter, %two), metadata={}\n"
            "  ROOT %t = (u32[], /*index=1*/f32[8]) tuple(%next, /*index=1*/%work)",
        )
    )
    program = read_program(together)
    assert (program.cycles, program.unknown_loops) == (4 * 100 + 7, 0)


def test_array_bytes():
    assert array_bytes("(pred[3]{0}, s4[4], f8e4m3fn[2,2], token[], u32[])") == 3 + 2 + 4 + 4


def compiled_for_cpu(fsdp: int) -> tuple[dict, list[int]]:
    """Exchanges of the small step on eight virtual devices, and the sizes of its parameters."""
    config = job(fsdp).config
    step = build_step(config, sharding.create_mesh(fsdp=fsdp), 10, 1000)
    batch = compiling.abstract_batch(job(fsdp), step)
    program = read_program(step.function.lower(step.abstract_state, batch).compile().as_text())
    return program.totals(), [leaf.size for leaf in jax.tree.leaves(step.abstract_state.params)]


@pytest.mark.slow  # the next one compiles a step, too
def test_replicated_step_only_sums_gradients():
    totals, sizes = compiled_for_cpu(1)
    assert set(totals) == {"all-reduce"}
    # The gradients in float32, and the loss; nothing is summed twice.
    assert 0 < totals["all-reduce"]["bytes"] - 4 * sum(sizes) <= 64


def test_fsdp_step_gathers_and_reduces():
    totals, sizes = compiled_for_cpu(8)
    split = 4 * sum(size for size in sizes if size >= sharding.FSDP_MIN_SIZE)
    # The compiler for CPUs sums whole gradients, and takes a part afterwards.
    assert set(totals) == {"all-gather", "all-reduce"}
    # Every split parameter is gathered once; images and activations never are.
    assert totals["all-gather"]["bytes"] == split
    assert 0 < totals["all-reduce"]["bytes"] - 4 * sum(sizes) <= 64 + 4 * len(sizes)


def test_gpus_without_their_compiler_get_state_and_operations(capsys, monkeypatch):
    monkeypatch.setattr(machines, "_is_installed", lambda name: False)
    with pytest.raises(SystemExit) as ended:
        command.main(["--config", DIGITS, "--topology", "gpu:8xH100", "--fsdp", "1", "--json"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["variants"]
    assert [row["variant"] for row in rows] == ["replicated", "replicated, remat"]
    assert all(row["memory"]["parameters"] > 0 < row["flops"] for row in rows)
    assert "pip install '.[plan-gpu]'" in printed.err
    assert printed.err.count("\n") == 1


def test_compiler_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    with pytest.raises(InputError, match=r"pip install '\.\[plan\]'"):
        machines.describe_devices(parse_machine("v5e:4x4"))


# 128 images a chip, one group of mixing: nothing but gradients need pass between chips.
ONE_GROUP_A_CHIP = ["--config.data.global_batch=2048", "--config.model.dtype=bfloat16"]


@pytest.mark.slow  # minutes of compilation
def test_tiny_on_sixteen_chips(capsys):
    where = ["--config", "configs/imagenet1k.py:tiny", "--topology", "v5e:4x4"]
    command.main([*where, "--fsdp", "1", "--no-remat", "--compilations", "1", *ONE_GROUP_A_CHIP])
    lines = dict(
        (line[:20].strip(), line[20:].strip()) for line in capsys.readouterr().out.splitlines()
    )
    assert lines["fits"].startswith("yes")
    # 28.6 million parameters in float32.
    assert lines["parameters"] == "0.11 GiB"
    assert lines["all-reduce"]
    assert not {"all-gather", "all-to-all", "collective-permute", "reduce-scatter"} & set(lines)
    least, estimate = (
        float(lines[name].removesuffix(" ms"))
        for name in ("compute, at least", "compiler's estimate")
    )
    # Seen: about six tenths, by the compiler's schedules; equal where it writes none.
    assert 0.4 * estimate < least < 0.8 * estimate


@pytest.mark.slow
def test_fsdp_on_sixteen_chips(capsys):
    where = ["--config", "configs/imagenet1k.py:tiny", "--topology", "v5e:4x4"]
    # One block a stage: the kinds of exchange do not depend on the depth, compiling does.
    shallow = "--config.model.depths=(1,1,1,1)"
    flags = ["--fsdp", "16", "--no-remat", "--compilations", "1", "--json"]
    command.main([*where, *flags, shallow, *ONE_GROUP_A_CHIP])
    (row,) = json.loads(capsys.readouterr().out)["variants"]
    # Each parameter once, in bfloat16; the head perhaps in float32, as it computes, or rounded for
    # the matrix unit before it is gathered.
    assert row["dtypes"]["all-gather"] in (["bf16"], ["bf16", "f32"])
    assert row["collectives"]["all-gather"]["bytes"] < 0.6 * row["checkpoint_bytes"] / 4
    # Gradients are summed and split in float32, most in a ring beside the products they are of.
    summed = {"all-reduce", "reduce-scatter", "collective-permute"} & set(row["collectives"])
    assert set(row["collectives"]) == {"all-gather"} | summed
    assert all(row["dtypes"][kind] == ["f32"] for kind in summed)
    assert "collective-permute" in summed or "reduce-scatter" in summed


@pytest.mark.slow
def test_two_slices(capsys):
    where = ["--config", "configs/imagenet1k.py:tiny", "--topology", "2xv5e:4x4"]
    small = ["--config.model.depths=(1,1,1,1)", "--config.data.global_batch=4096"]
    flags = ["--fsdp", "4", "--no-remat", "--compilations", "1", "--json"]
    command.main([*where, *flags, *small, "--config.model.dtype=bfloat16"])
    (row,) = json.loads(capsys.readouterr().out)["variants"]
    # Each of a slice's 16 chips hands over a sixteenth of the gradients, in float32; some are
    # filled up to whole tiles.
    parameters = row["checkpoint_bytes"] / 4
    handed = row["collectives"]["all-reduce between slices"]["bytes"]
    assert parameters / 16 <= handed < 2 * parameters / 16
    assert row["dtypes"]["all-reduce between slices"] == ["f32"]
    # Of two slices each sends half of it, twice.
    assert row["network_bytes"] == handed
    assert row["network_seconds"] == pytest.approx(handed / 3.125e9)
    # Parameters are gathered within a slice.
    assert row["dtypes"]["all-gather"] == ["bf16", "f32"]
    assert "all-gather between slices" not in row["collectives"]
