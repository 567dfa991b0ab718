"""Compiles a run's training step for machines that are not there, and reads what came out."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from convnext_jax.config import Config
from convnext_jax.errors import InputError
from convnext_jax.models.flops import count_macs
from convnext_jax.planning import dumps
from convnext_jax.planning.estimate import lower_bound
from convnext_jax.planning.machines import Machine, mesh_of, share_of_memory
from convnext_jax.planning.programs import Collective, read_program
from convnext_jax.planning.schedules import read_schedules
from convnext_jax.planning.whole_run import whole_run
from convnext_jax.step_builder import TrainingStep, build_step

# How often an array's bytes leave a chip, on many chips; an all-reduce is a reduce-scatter and an
# all-gather, everything else is counted once.
_PASSES = {"all-reduce": 2}
# XLA's effort for a program's time, of -1 to 1. What this is worth is in docs/scaling.md; with -1
# ConvNeXt-T's step for v5e takes more than twice as long. It has no steps in between.
_QUICK = {"exec_time_optimization_effort": -0.5}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to lay a run out.

    Attributes:
      fsdp: number of chips over which the state is split; 1: each has all of it.
      remat: whether each block's activations are recomputed in the backward pass.
    """

    fsdp: int
    remat: bool

    def __str__(self) -> str:
        """As the table heads its column."""
        layout = "replicated" if self.fsdp == 1 else f"fsdp {self.fsdp}"
        return f"{layout}, remat" if self.remat else layout


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to plan, and where.

    Attributes:
      config: of the run.
      variant: how it is laid out, whatever the config says of that.
      machine: where it would run.
      devices: the machine's, from `describe_devices`; None: nothing can be compiled.
      num_classes: of the dataset.
      num_examples: of its training split.
      num_held_out: of its evaluation split.
    """

    config: Config
    variant: Variant
    machine: Machine
    devices: list[Any] | None
    num_classes: int
    num_examples: int
    num_held_out: int = 0

    def with_images_at_once(self, images: int) -> "Job":
        """The same job with at most so many images at once on a chip."""
        data = dataclasses.replace(self.config.data, per_device_batch=images)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))

    def step(self) -> TrainingStep:
        """The training step; raises InputError where config, dataset and machine do not fit."""
        config = dataclasses.replace(
            self.config,
            model=dataclasses.replace(self.config.model, remat=self.variant.remat),
            mesh=dataclasses.replace(
                self.config.mesh, data=-1, fsdp=self.variant.fsdp, slices=self.machine.slices
            ),
        )
        mesh: Any = mesh_of(self.machine, self.devices, self.variant.fsdp)
        return build_step(config, mesh, self.num_classes, self.num_examples)


def analyse(job: Job, step: TrainingStep | None = None) -> dict[str, Any]:
    """What is known of a job without compiling it.

    Args:
      job: what to look at.
      step: its training step, if that is built already.

    Returns:
      Numbers by name: `memory`, bytes of a chip for each part of the state and for the batch;
      `per_device_batch`, images of a chip at once, and `micro_batches`; `checkpoint_bytes` of the
      whole state; `flops` of a chip and step, in matrix products and convolutions.

    Raises:
      InputError: config, dataset and machine do not fit each other.
    """
    step = job.step() if step is None else step
    batch = abstract_batch(job, step)
    state, shardings = step.abstract_state, step.state_shardings
    chips, global_batch = job.machine.size, job.config.data.global_batch
    return {
        "variant": str(job.variant),
        "fsdp": job.variant.fsdp,
        "remat": job.variant.remat,
        "per_device_batch": global_batch // chips // step.accumulation_steps,
        "micro_batches": step.accumulation_steps,
        "memory": {
            "parameters": bytes_per_chip(state.params, shardings.params),
            "optimizer": bytes_per_chip(state.opt_state, shardings.opt_state),
            "moving average": bytes_per_chip(state.ema, shardings.ema),
            "batch": _bytes(batch) // chips,
        },
        "checkpoint_bytes": _bytes(state),
        # A multiply-accumulate is two operations.
        "flops": 2 * count_macs(step.function, state, batch) / chips,
    }


def measure(
    job: Job, scopes: Mapping[str, Sequence[int]] | None = None, quick: bool = False
) -> dict[str, Any]:
    """Compiles a job's step and reads the program.

    Args:
      job: what to compile.
      scopes: whose time is to be told apart, see `read_program`.
      quick: have the compiler take less care for the program's time, and so less time.

    Returns:
      What `analyse` gives, and `quick`; `fits`; `room`, bytes that are left, negative if they are
      missing, None if the compiler does not say; `compile_seconds`; and of a program that fits all
      that `read_compiled` gives, and of the whole `run` what `whole_run` does, with its `hours`.

    Raises:
      InputError: config, dataset and machine do not fit each other.
    """
    step = job.step()
    row: dict[str, Any] = analyse(job, step) | {"quick": quick}
    traced = step.function.trace(step.abstract_state, abstract_batch(job, step))
    lowered = traced.lower(lowering_platforms=("cuda" if job.machine.is_gpu else "tpu",))
    schedules: dict[str, int] | None = None if job.machine.is_gpu else {}
    began = time.perf_counter()
    try:
        with dumps.collected() as folder:
            compiled = lowered.compile(_QUICK if quick else None)
            if schedules is not None and folder is not None:
                with contextlib.suppress(OSError):  # the folder is gone: a plan does without
                    schedules = read_schedules(folder)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row |= {"fits": False, "room": None, "compile_seconds": time.perf_counter() - began}
        needed = memory_needed(str(error))
        if needed is not None:
            row["memory"]["total"] = needed[0]
            row["room"] = needed[1] - needed[0]
        return row
    row["compile_seconds"] = time.perf_counter() - began
    global_batch = job.config.data.global_batch
    found = read_compiled(compiled, job.machine, global_batch, schedules, scopes)
    row["memory"] |= found.pop("memory")
    if found["room"] < 0:  # the compiler for GPUs does not refuse it
        return row | {"fits": False, "room": found["room"]}
    row |= found
    run = whole_run(job.config, step.steps, job.machine, row, job.num_held_out)
    return row | {"run": run, "hours": run["hours"]}


def read_compiled(
    compiled: Any,
    machine: Machine,
    global_batch: int,
    schedules: Mapping[str, int] | None,
    scopes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """What a compiled step says of itself.

    Args:
      compiled: a `jax.stages.Compiled`.
      machine: what it is for.
      global_batch: images of a step.
      schedules: cycles by instruction, from `read_schedules`; empty where there are none; None for
        GPUs, whose compiler writes none.
      scopes: whose time is to be told apart, see `read_program`.

    Returns:
      By name: `memory` (bytes of a chip: `temporary`, `program`, and the `total`), `collectives` by
      kind and their `dtypes`, `bytes_accessed`; of a step and chip:

      - `compute_seconds`: the lower bound of `estimate.py`, or the compiler's own estimate;
        `compute_from` says which, `schedules` (of GPUs `bytes and products`) or `compiler`;
      - `compiler_seconds`: the compiler's own estimate, of before it has made code; None of GPUs;
      - `instructions` that occupy the cores, and `small_instructions`, those of them that move less
        than 1 MB;
      - `schedule_seconds`, `memory_seconds`, `matrix_seconds`: the sums of which the bound takes
        the longest of each instruction, and `without_schedule`, the number of instructions whose
        schedule is unknown; None where the bound is, and of schedules for GPUs;
      - `bound_in`: the parts of the bound in each scope, None where the bound is;
      - `unknown_loops`: those of which nothing says how often they run, counted once;
      - `exchange_seconds` within a slice, and, between slices, `network_bytes` and
        `network_seconds`, None where the network's bandwidth is not published; of GPUs within a
        host and between hosts;
      - `step_seconds` and `images_per_second` as if compute and exchange did not overlap.
    """
    memory = compiled.memory_analysis()
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes  # the new state lies where the old one lay
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    program = read_program(compiled.as_text(), scopes, kernels=machine.is_gpu)
    totals = program.totals()
    estimated = None if machine.is_gpu else program.cycles / machine.chip.clock
    least = lower_bound(program, schedules, machine.chip)
    compute = estimated if least is None else least.bound
    assert compute is not None
    exchange = network_bytes = 0.0
    for found in program.collectives:
        near, far = _sent(found, machine)
        exchange += near / machine.chip.link
        network_bytes += far
    network = network_bytes / machine.chip.network if machine.chip.network else None
    source = "compiler" if least is None else "schedules"
    seconds = compute + exchange + (network or 0)
    return {
        "fits": True,
        "room": int(machine.chip.hbm * share_of_memory(machine)) - total,
        "memory": {
            "temporary": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "total": total,
        },
        "collectives": totals,
        "dtypes": program.dtypes(),
        "bytes_accessed": (
            sum(found.times * found.memory_bytes for found in program.executed)
            if machine.is_gpu
            else compiled.cost_analysis()["bytes accessed"]
        ),
        "instructions": sum(found.times for found in program.executed),
        "small_instructions": sum(
            found.times for found in program.executed if found.memory_bytes < 10**6
        ),
        "compute_seconds": compute,
        "compute_from": "bytes and products" if machine.is_gpu else source,
        "compiler_seconds": estimated,
        "schedule_seconds": None if machine.is_gpu else least and least.schedule,
        "memory_seconds": least and least.memory,
        "matrix_seconds": least and least.matrix,
        "without_schedule": None if machine.is_gpu else least and least.without_schedule,
        "bound_in": least and dict(least.bound_in),
        "unknown_loops": program.unknown_loops,
        "exchange_seconds": exchange,
        "network_bytes": network_bytes,
        "network_seconds": network if network_bytes else 0.0,
        "step_seconds": seconds,
        "images_per_second": global_batch / seconds,
    }


def _sent(found: Collective, machine: Machine) -> tuple[float, float]:
    """Bytes that a chip sends for an exchange: to chips near it, and over its host's network."""
    sent = _PASSES.get(found.kind, 1) * found.bytes * found.times
    if found.between_slices:
        # What each chip hands to its host of a sum is its part of the slice's; the hosts exchange
        # it with those of the other slices, each of which adds up a part and passes it on.
        return 0.0, sent * (machine.slices - 1) / machine.slices
    if not machine.is_gpu:
        return sent, 0.0
    group = found.group or range(machine.size)
    hosts = len({number // machine.chip.host.chips for number in group})
    each = len(group) // hosts
    # Those of a host add up first; each then exchanges its part with the other hosts.
    return (sent if each > 1 else 0.0), sent / each * (hosts - 1) / hosts


def search(
    job: Job, row: dict[str, Any], compilations: int, progress: Callable[[str], None]
) -> tuple[int | None, int]:
    """Finds by bisection the most images that a chip can take at once.

    Args:
      job: the run.
      row: from `measure` of the job, at the number of images that its config has.
      compilations: how many programs may be compiled.
      progress: is told each attempt.

    Returns:
      The largest number that was seen to fit, None if none was; and how many compilations are left.
    """
    tried = row["per_device_batch"]
    largest = tried if row["fits"] else None
    share = job.config.data.global_batch // job.machine.size
    open_ones = candidates(share, tried, row["fits"])
    while open_ones and compilations:
        middle = open_ones[len(open_ones) // 2]
        progress(f"compiling {job.variant} with {middle} images a chip at once")
        try:
            fits = measure(job.with_images_at_once(middle))["fits"]
        except InputError:  # its micro-batches do not make whole groups to mix
            open_ones.remove(middle)
            continue
        compilations -= 1
        largest = middle if fits else largest
        open_ones = [n for n in open_ones if (n > middle if fits else n < middle)]
    return largest, compilations


def candidates(share: int, tried: int, fits: bool) -> list[int]:
    """Divisors of a chip's share of a step's images that may be the largest that fits, ascending.

    Args:
      share: images that a chip sees in a step.
      tried: how many at once were compiled already.
      fits: whether they fit.
    """
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    return [n for n in divisors if (n > tried if fits else n < tried)]


def memory_needed(message: str) -> tuple[int, int] | None:
    """Bytes that a program needs and those that there are, from the compiler's refusal."""
    found = re.search(r"Used ([\d.]+)([KMGT]?)\w* of ([\d.]+)([KMGT]?)\w* hbm", message)
    if found is None:
        return None
    used, used_unit, there, there_unit = found.groups()
    return int(float(used) * _UNITS[used_unit]), int(float(there) * _UNITS[there_unit])


def abstract_batch(job: Job, step: TrainingStep) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the batch that a step is given."""
    return step.task.batch(job.config.data.global_batch)


def bytes_per_chip(shapes: Any, shardings: Any) -> int:
    """Bytes that one chip holds of a tree of arrays, without the padding of its memory layout.

    Args:
      shapes: anything with a shape and a type; None holds nothing.
      shardings: a tree of shardings of the same structure.
    """

    def part(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sharding.shard_shape(leaf.shape), leaf.dtype)

    return _bytes(jax.tree.map(part, shapes, shardings))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
