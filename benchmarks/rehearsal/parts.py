"""What is rehearsed: each part drives the real commands, and returns what it saw.

A part ends with `Broken` where the run does something else than the documents promise.
"""

import contextlib
import copy
import dataclasses
import json
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.rehearsal.measures import by_role, slope
from benchmarks.rehearsal.runs import Broken, Run, available_memory
from benchmarks.rehearsal.stage import REAL, Stage, bytes_below, last_step, require, saved_steps

# A few parameters: what is tried is all but the arithmetic.
_SMALL = (
    "--config.model.depths=(1,1,1,1)",
    "--config.model.dims=(8,8,8,8)",
    "--config.data.image_size=32",
)
# For few images in a step.
_UNMIXED = ("--config.augment.mixup=0.0", "--config.augment.cutmix=0.0")
_FIRST_STEP = "first step done"
# What training XL on the CPU takes: its state, gradients, and copies of what is being saved.
_XL_BYTES = 16e9
# Of one of many processes; most of it is what compiling takes.
_PROCESS_BYTES = 0.7e9
# The run that is tried on each dataset.
_CONFIGS = {
    "imagenet1k": "configs/imagenet1k.py:tiny",
    "imagenet22k": "configs/imagenet22k.py:base",
    "folder": "configs/finetune_folder.py:tiny",
}


def steps(stage: Stage, dataset: str, workers: int) -> dict[str, Any]:
    """A run with decoding workers: its start, its memory over many steps, and an evaluation of
    all images that are held out.
    """
    size = stage.size
    workdir = stage.workdir(f"{dataset}-{workers}")
    overrides = (
        *_SMALL,
        f"--config.num_steps={size.steps}",
        f"--config.data.global_batch={size.batch}",
        f"--config.augment.mix_group={size.batch}",
        f"--config.data.workers={workers}",
        "--config.log_every_steps=10",
    )
    with stage.train(workdir, dataset, _CONFIGS[dataset], *overrides) as run:
        run.wait_until_printed(_FIRST_STEP, 900)
        result: dict[str, Any] = {"first_step_seconds": run.seconds}
        result["at_first_step"] = by_role(run.seen())
        # The end of the last step is recorded only with the evaluation.
        last = size.steps - 10
        began = run.seconds
        samples = run.sample_rss(lambda: last_step(workdir), last, 1800, size.sample_seconds)
        result["steps_per_second"] = last / (run.seconds - began)
        result["at_last_step"] = by_role(run.seen())
        result["most_in_evaluation"] = _most_until_the_end(run, began := run.seconds)
        result["evaluation_seconds"] = run.seconds - began
        require(run.wait(60) == [0], run, "must end with 0")
        found = re.search(r"evaluated (\d+) images", run.printed())
        require(found is not None and int(found[1]) == size.evaluated, run, "must evaluate all")
        result["left_behind"] = run.left_behind()
    watched = [sample for sample in samples if sample["step"] >= size.warmup]
    result["slopes"] = {
        role: slope([sample["step"] for sample in watched], [sample[role] for sample in watched])
        for role in ("main", "worker")
        if all(role in sample for sample in watched)
    }
    return result


def long(stage: Stage) -> dict[str, Any]:
    """Ten times as many steps, whether what grows at first goes on to."""
    size = stage.size
    longer = copy.copy(stage)
    longer.size = dataclasses.replace(size, steps=10 * size.steps, warmup=10 * size.warmup)
    return steps(longer, "folder", 2) | {"steps": longer.size.steps}


def _most_until_the_end(run: Run, began: float) -> dict[str, float]:
    """The largest number of processes and amount of memory until the run ends."""
    most: dict[str, float] = {"processes": 0, "pss": 0, "files": 0}
    due = began

    def ended() -> bool:
        nonlocal due
        if run.seconds >= due:
            due = run.seconds + 2
            seen = run.seen()
            most["processes"] = max(most["processes"], len(seen))
            most["pss"] = max(most["pss"], sum(process.pss for process in seen))
            most["files"] = max([most["files"], *(process.files for process in seen)])
        return run.processes[0].poll() is not None

    run.wait_for(ended, 1800)
    return most


def evaluate(stage: Stage) -> dict[str, Any]:
    """The command on all 50,000 images that are held out."""
    workdir = stage.workdir("evaluate")
    overrides = (
        *_SMALL,
        *_UNMIXED,
        "--config.num_steps=1",
        f"--config.data.global_batch={stage.size.batch}",
        f"--config.data.eval_split=validation[:{stage.size.batch}]",
        "--config.data.workers=2",
    )
    with stage.train(workdir, "imagenet1k", _CONFIGS["imagenet1k"], *overrides) as run:
        require(run.wait(900) == [0], run, "must end with 0")
    command = [sys.executable, "-m", "convnext_jax.evaluate", "--checkpoint", str(workdir)]
    command += ["--split", "validation", "--json"]
    with Run(command, workdir / "evaluation", stage.env) as run:
        most = _most_until_the_end(run, 0)
        seconds = run.seconds
        require(run.wait(60) == [0], run, "must end with 0")
        line = next(line for line in run.printed().splitlines() if line.startswith("{"))
        count = json.loads(line)["num_examples"]
        require(count == stage.size.evaluated, run, f"must evaluate all, not {count}")
        return {"seconds": seconds, "most": most, "left_behind": run.left_behind()}


def resume(stage: Stage) -> dict[str, Any]:
    """The real batch: the start of a run, and of one that has done 90,000 steps.

    The checkpoint of a run told to go after its first steps gets the late step's name, which is
    where a run has its step from.
    """
    overrides = (
        *_SMALL,
        f"--config.data.global_batch={stage.size.late_batch}",
        f"--config.augment.mix_group={min(stage.size.late_batch, 128)}",
        "--config.data.workers=2",
    )
    result: dict[str, Any] = {"batch": stage.size.late_batch}
    late = stage.workdir("late")
    for name in ("unmeasured", "start", "late"):  # the first fills the cache of compiled programs
        workdir = late if name == "late" else stage.workdir(name)
        with stage.train(workdir, "imagenet1k", _CONFIGS["imagenet1k"], *overrides) as run:
            run.wait_until_printed(_FIRST_STEP, 900)
            result[f"{name}_seconds"] = run.seconds
            result[f"{name}_memory"] = by_role(run.seen())
            run.processes[0].send_signal(signal.SIGTERM)
            told = run.seconds
            require(run.wait(300) == [75], run, "must end with 75")
            result[f"{name}_left_after_seconds"] = run.seconds - told
            require(run.left_behind() == 0, run, "must leave no process behind")
            printed = run.printed()
        if name == "start":
            (step,) = saved_steps(workdir)
            late.mkdir(parents=True)
            (late / "checkpoints").mkdir()
            (workdir / "checkpoints" / str(step)).rename(
                late / "checkpoints" / str(stage.size.late_step)
            )
    if f"resuming after step {stage.size.late_step} " not in printed:
        raise Broken(f"did not go on from step {stage.size.late_step}")
    return {key: value for key, value in result.items() if not key.startswith("unmeasured")}


def large_state(stage: Stage, count: int) -> dict[str, Any]:
    """ConvNeXt-XL's state: a run is told to go and saves it, goes on, is told again and killed in
    the middle of that save, and goes on from the first.

    Args:
      stage: where.
      count: number of processes; several split it by fsdp.
    """
    if stage.size is REAL and available_memory() < _XL_BYTES:
        raise Broken(
            f"needs {_XL_BYTES / 1e9:.0f} GB of memory; {available_memory() / 1e9:.1f} GB are free"
        )
    config, *others = stage.size.xl
    overrides = (
        *others,
        *_UNMIXED,
        f"--config.data.global_batch={2 * count}",
        f"--config.data.eval_split=train[-{2 * count}:]",
        f"--config.mesh.fsdp={count}",
        "--config.data.workers=0",
        "--config.tensorboard=False",
    )
    workdir = stage.workdir(f"xl-{count}")
    checkpoints = workdir / "checkpoints"
    result: dict[str, Any] = {"processes": count}

    def start(expected: str) -> Run:
        run = stage.train(workdir, "imagenet22k", config, *overrides, count=count)
        with contextlib.ExitStack() as stack:
            stack.enter_context(run)
            run.wait_until_printed(expected, 900)
            result.setdefault("first_words_seconds", []).append(run.seconds)
            run.wait_until_printed(_FIRST_STEP, 900)
            result.setdefault("first_step_seconds", []).append(run.seconds)
            stack.pop_all()
        return run

    def half_saved() -> int:
        return sum(bytes_below(path) for path in checkpoints.glob("*tmp*"))

    with start("devices: ") as run:
        run.processes[-1].send_signal(signal.SIGTERM)
        told = run.seconds
        require(run.wait(600) == [75] * count, run, f"must end with 75 on all {count}")
        result["saved_and_left_seconds"] = run.seconds - told
        require(run.left_behind() == 0, run, "must leave no process behind")
    (step,) = saved_steps(workdir)
    result["state_bytes"] = bytes_below(checkpoints / str(step))
    resuming = f"resuming after step {step} "
    with start(resuming) as run:
        result["memory"] = by_role(run.seen())
        run.processes[-1].send_signal(signal.SIGTERM)
        run.wait_for(lambda: half_saved() > stage.size.middle, 600, 0.01)
        for process in run.processes:
            process.kill()
        result["interrupted_bytes"] = half_saved()
        run.wait(60)
        require(run.left_behind() == 0, run, "must leave no process behind")
    require(saved_steps(workdir) == [step], run, "must have been killed in the middle of a save")
    with start(resuming):
        result["restored_seconds"] = result["first_words_seconds"][-1]
    shutil.rmtree(workdir)
    return result


def together(stage: Stage) -> dict[str, Any]:
    """As many processes as there is memory for, 32 at most: they start, are preempted, start again,
    and lose one.
    """
    count = min(stage.size.processes, int(available_memory() / _PROCESS_BYTES))
    workdir = stage.workdir("together")
    overrides = (
        *_SMALL,
        *_UNMIXED,
        f"--config.data.global_batch={2 * count}",
        "--config.data.workers=0",
        "--config.data.threads=1",
        "--config.log_every_steps=1",
        "--config.hang_seconds=0",
        "--config.tensorboard=False",
    )
    result: dict[str, Any] = {"processes": count}

    def start() -> Run:
        return stage.train(workdir, "imagenet1k", _CONFIGS["imagenet1k"], *overrides, count=count)

    with start() as run:
        run.wait_until_printed(_FIRST_STEP, 1200)
        result["first_step_seconds"] = run.seconds
        run.wait_for(lambda: last_step(workdir) >= 5, 300)
        result["memory"] = by_role(run.seen())
        result["preempted"] = _preempt(run, count)
    with start() as run:
        run.wait_until_printed(_FIRST_STEP, 1200)
        result["again_first_step_seconds"] = run.seconds
        before = last_step(workdir)
        run.wait_for(lambda: last_step(workdir) >= before + 3, 300)
        victim = count - 1
        run.processes[victim].kill()
        killed = run.seconds
        statuses = run.wait(600)
        result["killed"] = {
            "seconds": run.seconds - killed,
            "statuses": {str(k): n for k, n in Counter(statuses).items()},
            "left_behind": run.left_behind(),
        }
        others = set(statuses[:victim])
        require(others == {76}, run, f"must all end with 76 but the killed one, not {others}")
    return result


def _preempt(run: Run, count: int) -> dict[str, Any]:
    told = run.seconds
    run.processes[count // 2].send_signal(signal.SIGTERM)
    statuses = run.wait(600)
    found = [re.search(r"preempted after step (\d+)", run.printed(i)) for i in range(count)]
    places = {match and match[1] for match in found}
    require(statuses == [75] * count, run, f"must all end with 75, not {Counter(statuses)}")
    require(len(places) == 1, run, f"must all leave at one step, not {places}")
    return {"seconds": run.seconds - told, "left_behind": run.left_behind()}


PARTS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    f"{dataset}-{workers}": lambda stage, d=dataset, w=workers: steps(stage, d, w)
    for dataset in _CONFIGS
    for workers in (2, 32)
} | {
    "folder-long": long,
    "evaluate": evaluate,
    "resume": resume,
    "xl-1": lambda stage: large_state(stage, 1),
    "xl-2": lambda stage: large_state(stage, 2),
    "together": together,
}
