"""The benchmark of models runs, records failures, and its check finds what became slower."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import functional, random_images, random_params

from benchmarks import again, check, gpu_step, models, tpu_step
from benchmarks.nnx_naive import create_naive
from convnext_jax.errors import InputError
from convnext_jax.tree import first_difference, flatten_with_names

ROOT = Path(__file__).parents[2]
QUICK = ("--image-size=32", "--batch=2", "--rounds=1", "--round-seconds=0.1", "--dtype=float32")


def job(**changes) -> models.Job:
    values = {"contestant": "ours", "model": "test_convnext", "mode": "infer", "dtype": "float32"}
    values |= {"batch": 2, "image_size": 32, "platform": "cpu", "threads": 1, "thorough": False}
    return models.Job(**(values | changes))


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The settings of tests, such as eight devices, are not those of a measurement.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "benchmarks.models", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # Relative to the largest logit. Sums in another order, and Flax's fast variance, which
        # loses digits: 2e-7 was seen. GELU by tanh in place of the exact one differs by 5e-5.
        ("float32", 1e-5),
        # Twelve blocks of 8-bit mantissas, each rounding elsewhere: 3e-3 was seen.
        ("bfloat16", 2e-2),
    ],
)
def test_naive_model_is_the_same_function(dtype, tolerance):
    apply, shapes = functional("convnext_atto", num_classes=7, dtype=dtype)
    naive = nnx.eval_shape(lambda: create_naive("convnext_atto", 7, dtype))
    graph, state = nnx.split(naive)
    found, expected = (flatten_with_names(t) for t in (nnx.to_pure_dict(state), shapes))
    assert first_difference(found, expected) is None
    params, images = random_params(shapes), random_images(2, 64, 96, 3)
    ours = jax.jit(apply)(params, images)
    theirs = jax.jit(lambda p, x: nnx.merge(graph, nnx.State(p))(x))(params, images)
    assert theirs.dtype == jnp.float32
    error = np.max(np.abs(ours - theirs)) / np.max(np.abs(ours))
    assert error < tolerance


@pytest.mark.parametrize(
    ("name", "field"), [("convnextv2_atto", "grn"), ("convnext_isotropic_small", "architecture")]
)
def test_naive_model_refuses_what_it_is_not(name, field):
    with pytest.raises(InputError, match=f"{name}.*differs in .*{field}"):
        create_naive(name, 10)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    """A result of a training step, with one peer that runs and one that cannot."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ("--model=test_convnext", "--mode=train", "--peers=timm,nnx-naive", *QUICK)
    done = run_program(*arguments, f"--out={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    result = json.loads(path.read_text())
    assert path.name == f"test_convnext-train-{result['device']}-float32.json"
    assert "nnx-naive: `model` (=test_convnext) must be" in done.stdout
    return result


@pytest.mark.slow  # for `measured`, a minute
def test_results_hold_every_field(measured):
    assert measured["model"] == "test_convnext" and measured["mode"] == "train"
    assert (measured["batch"], measured["image_size"], measured["rounds"]) == (2, 32, 1)
    assert measured["device"].startswith(f"cpu-{measured['threads']}-cores")
    assert measured["threads"] == len(os.sched_getaffinity(0))
    assert measured["environment"] == models.ENVIRONMENT
    assert {"convnext_jax", "jax", "flax", "torch", "timm"} <= set(measured["versions"])
    work = check.least_work("test_convnext", "train", "float32", 2, 32)
    assert (measured["least_flops_per_step"], measured["least_bytes_per_step"]) == work
    bound = max(
        work[0] / measured["matmul_flops_per_second"], work[1] / measured["copy_bytes_per_second"]
    )
    assert measured["roofline_seconds_per_step"] == bound
    contestants = measured["contestants"]
    assert list(contestants) == ["ours", "timm", "nnx-naive"]
    for name in ("ours", "timm"):
        record = contestants[name]
        (seconds,) = record["rounds_seconds_per_step"]
        assert record["seconds_per_step"] == seconds > 0
        assert record["images_per_second"] == 2 / seconds
        assert record["roofline_fraction"] == bound / seconds
        assert record["steps_per_round"] >= 1
        assert record["peak_memory_bytes"] > 2**20
        for phase in ("build", "first_step", "warmup"):
            assert record[f"{phase}_seconds"] > 0
    speeds = [contestants[name]["images_per_second"] for name in ("ours", "timm")]
    assert measured["ratios"] == {"timm": speeds[0] / speeds[1]}


@pytest.mark.slow  # for `measured`, a minute
def test_failures_are_recorded(measured):
    error = measured["contestants"]["nnx-naive"]["error"]
    assert error.startswith("`model` (=test_convnext) must be a plain ConvNeXt V1")
    row = check.table([measured]).splitlines()[-1]
    assert row.startswith("| `test_convnext`, 2, 32 | train | float32 | nnx-naive | not measured: ")


def test_compiling_peer_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        next(models.torch_settings(job(contestant="timm-compile")))


def test_a_process_that_dies_is_recorded(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    contestant = models.Contestant(job(model="test_convnext3"))
    try:
        assert "error" not in contestant.record
        contestant._process.kill()
        contestant.run_round(0.1)
        assert contestant.record == {"error": "the process ended with status -9"}
        contestant.run_round(0.1)  # Of one that has failed nothing more is asked.
    finally:
        contestant.close()


def test_a_failing_setting_leaves_the_others(monkeypatch):
    def settings(job):
        yield "slow", lambda: sum(range(10**5))
        yield "broken", lambda: {}["nothing"]
        yield "fast", lambda: 0
        raise MemoryError("no room for more\nlines")

    monkeypatch.setattr(models, "torch_settings", settings)
    step, record = models.prepare(job(contestant="timm"))
    assert step() == 0 and record["setting"] == "fast"
    tried = record["settings_seconds_per_step"]
    assert tried["slow"] > tried["fast"]
    assert tried["broken"] == "KeyError: 'nothing'"
    assert tried["building failed"] == "MemoryError: no room for more"


def test_least_work_by_hand():
    # test_convnext3 at 32 pixels: maps of 8, 4, 2, 1 pixels; one block a stage.
    maps = [8 * 8 * 32, 4 * 4 * 64, 2 * 2 * 96, 1 * 1 * 128]
    images = 32 * 32 * 3
    parameters = sum(
        leaf.size for leaf in jax.tree.leaves(functional("test_convnext3", num_classes=1000)[1])
    )
    stages = (images + maps[0]) + (maps[0] + maps[1]) + (maps[1] + maps[2]) + (maps[2] + maps[3])
    forward = stages + 2 * sum(maps)
    flops, moved = check.least_work("test_convnext3", "infer", "bfloat16", 1, 32)
    assert moved == 2 * (forward + parameters)
    # Inputs read, gradients of outputs read, gradients of inputs written.
    backward = images + maps[0] + sum(2 * a + b for a, b in zip(maps[:-1], maps[1:], strict=True))
    backward += 3 * sum(maps)
    training = check.least_work("test_convnext3", "train", "bfloat16", 1, 32)
    assert training == (3 * flops, 2 * (forward + backward + 2 * parameters) + 24 * parameters)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=convnext_tny"], "convnext_tny"),
        (["--peers=tim"], "`peers` (=tim) must be one of"),
        (["--batch=0"], "`batch` (=0) must be positive"),
        (["--image-size=16"], "`image_size` (=16) must be at least 32"),
    ],
)
def test_wrong_flags_end_in_one_sentence(arguments, message, capsys, monkeypatch):
    for name in models.ENVIRONMENT:  # The command sets them; this gives them back.
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit) as ending:
        models.main(arguments)
    assert ending.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def slower(result: dict, factor: float) -> dict:
    changed = copy.deepcopy(result)
    changed["ratios"] = {peer: ratio * factor for peer, ratio in result["ratios"].items()}
    return changed


def check_with(monkeypatch, committed: Path, new: dict | None) -> int:
    monkeypatch.setattr(check, "measure_again", lambda *_: new)
    with pytest.raises(SystemExit) as ending:
        check.main(["--results", str(committed), "--tolerance", "0.2"])
    return ending.value.code


@pytest.mark.slow  # for `measured`, a minute
def test_check_finds_what_became_slower(measured, monkeypatch, tmp_path, capsys):
    here = measured | {"device": check.this_device()["device"]}
    check.write_result(tmp_path, here)
    (name,) = (path.name for path in tmp_path.iterdir())
    assert check_with(monkeypatch, tmp_path, slower(here, 0.85)) == 0
    assert capsys.readouterr().out == f"{name}: as fast as before\n"
    assert check_with(monkeypatch, tmp_path, slower(here, 0.75)) == 1
    was = here["ratios"]["timm"]
    line = f"{name}: {0.75 * was:.2f} times timm, was {was:.2f} times"
    assert capsys.readouterr().out == f"{line}; once more\n{line}\n"
    broken = here | {"ratios": {}, "contestants": {"timm": {"error": "no timm"}}}
    assert check_with(monkeypatch, tmp_path, broken) == 1
    assert capsys.readouterr().out.endswith(f"\n{name}: timm could not be measured: no timm\n")


@pytest.mark.slow  # for `measured`, a minute
def test_check_skips_other_devices_and_other_files(measured, monkeypatch, tmp_path, capsys):
    check.write_result(tmp_path, measured | {"device": "abacus"})
    (tmp_path / "another-train-cpu.json").write_text('{"another": "benchmark"}')
    nothing = f"nothing was compared: {tmp_path} has no results of this device (cpu-"
    assert check_with(monkeypatch, tmp_path, None).startswith(nothing)
    assert "abacus-float32.json: skipped, this device is cpu-" in capsys.readouterr().out


def test_check_that_compares_nothing_fails(monkeypatch, tmp_path):
    assert check_with(monkeypatch, tmp_path / "nowhere", None).startswith("nothing was compared")


def test_check_knows_input_and_forms(monkeypatch, tmp_path, capsys):
    here = {"device": check.this_device()["device"]}
    both = {"timm": 2.0, "timm, uint8": 1.5}
    found = {f"ratio to {peer}": ratio for peer, ratio in both.items()}
    inputs = here | {"transforms": {"small": {"mean_bytes": 1, "evaluation": found}}}
    forms = here | {"ratios": {"in pieces": 1.2}}
    for name, result in {"input": inputs, "cpu_forms": forms}.items():
        (tmp_path / f"{name}-here.json").write_text(json.dumps(result))
    new = {
        "input": lambda *_: again.with_input_ratios(inputs),
        "cpu_forms": lambda *_: forms | {"ratios": {"in pieces": 0.9}},
    }
    monkeypatch.setattr(check, "OTHERS", new)
    assert check_with(monkeypatch, tmp_path, None) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "input-here.json: as fast as before" in lines
    assert "cpu_forms-here.json: 0.90 times in pieces, was 1.20 times" in lines


def test_check_believes_a_fall_only_when_it_is_seen_twice(monkeypatch, tmp_path, capsys):
    was = {"device": check.this_device()["device"], "ratios": {"timm": 2.0, "naive": 4.0}}
    (tmp_path / "creating-here.json").write_text(json.dumps(was))
    falls = "creating-here.json: 3.00 times naive, was 4.00 times"
    kept = {"timm": 2.0, "naive": 3.8}
    for then, status, last in (
        (kept, 0, "creating-here.json: as fast as before"),
        (kept | {"naive": 2.0}, 1, falls),  # by the better one
        ({"timm": 1.0, "naive": 3.8}, 0, "creating-here.json: as fast as before"),
    ):
        rounds = iter([was | {"ratios": {"timm": 2.0, "naive": 3.0}}, was | {"ratios": then}])
        found = {"creating": lambda *_, rounds=rounds: next(rounds)}
        monkeypatch.setattr(check, "OTHERS", found)
        assert check_with(monkeypatch, tmp_path, None) == status
        assert capsys.readouterr().out.splitlines() == [f"{falls}; once more", last]


def test_check_lets_far_slower_peers_scatter():
    ratios = lambda value: {"ratios": {"naive": value}}  # noqa: E731
    assert not check.fallen(ratios(20.0), ratios(10.1), 0.2)
    assert check.fallen(ratios(20.0), ratios(9.9), 0.2) == ["9.90 times naive, was 20.00 times"]
    assert check.fallen(ratios(4.9), ratios(3.9), 0.2) == ["3.90 times naive, was 4.90 times"]


def test_check_goes_on_after_what_cannot_be_measured(monkeypatch, tmp_path, capsys):
    here = {"device": check.this_device()["device"], "ratios": {"timm": 2.0}}
    for name in ("cpu_forms", "creating"):
        (tmp_path / f"{name}-here.json").write_text(json.dumps(here))
    end = [sys.executable, "-c", "raise SystemExit(3)"]
    new = {
        "cpu_forms": lambda *_: subprocess.run(end, check=True),
        "creating": lambda *_: here,
    }
    monkeypatch.setattr(check, "OTHERS", new)
    assert check_with(monkeypatch, tmp_path, None) == 1
    assert capsys.readouterr().out.splitlines() == [
        "cpu_forms-here.json: could not be measured again: exit status 3",
        "creating-here.json: as fast as before",
    ]


def test_check_of_plans_compares_with_what_they_were(monkeypatch, capsys):
    tpu, gpu = (json.loads(module.FILE.read_text()) for module in (tpu_step, gpu_step))
    ratios = again.plan_ratios(tpu, gpu)
    assert all(ratio > 1.15 for found in ratios.values() for ratio in found.values())
    plan = gpu["now"][again.GPU_STEP]
    heavier = plan | {"bytes_accessed": 1.1 * plan["bytes_accessed"]}
    monkeypatch.setattr(gpu_step, "compile_step", lambda _: heavier)
    monkeypatch.setattr(tpu_step, "compile_case", lambda case, form: tpu[str(case)][form])
    with pytest.raises(SystemExit) as ending:
        check.main(["--plans"])
    assert ending.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tpu_step.json: as before"
    assert lines[1].startswith("gpu_step.json: 1.09 times T, H200 as it was, by bytes, was 1.20")


def test_table_of_committed_results_is_in_the_document():
    document = (ROOT / "docs" / "performance.md").read_text()
    part = document.partition("<!-- models -->\n")[2].partition("\n<!-- end -->")[0]
    assert part == check.table(check.read_results(check.RESULTS).values())
