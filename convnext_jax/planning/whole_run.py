"""How long a whole run takes on a machine: start, steps, evaluations, saves; and how it is fed.

Steps come from a compiled program. The rest is arithmetic on the rates below, each of which is
measured in this repository, published, or an assumption that says so.
"""

import math
from typing import Any

from convnext_jax.config import Config, Steps
from convnext_jax.models.registry import get_variant
from convnext_jax.planning.machines import Machine

# Assumed: from the command to the first step. Of it, compiling both programs 150 s: ConvNeXt-T's
# step for v5e takes three to four minutes on two cores, of which a TPU's host has a hundred; a
# restart finds it in the cache of programs.
START_SECONDS = 180.0
# The forward pass has a third of the operations of a training step.
FORWARD_SHARE = 1 / 3
# What an evaluation costs beside its computing: pausing and starting the input, and the last
# numbers' way home. The bound that the run's own tests hold for the digits on CPU.
EVALUATION_PAUSE = 1.0
# Of each task, images/s that a hyperthread, as hosts count them, reads for training and for
# evaluation: half of what was measured of one core, by benchmarks/input.py on images of mixed sizes
# (502 and 539 images/s), and by benchmarks/input_tasks.py on those of ADE20K's size (64 and 74) and
# of COCO's (46; 39 with what is done with the detections of an image).
IMAGES_PER_CPU = {
    "classification": (250.0, 270.0),
    "segmentation": (32.0, 37.0),
    "detection": (23.0, 19.0),
}
# Assumed: a chip's memory to its host's, which a save waits for; and from there to a bucket, which
# goes on beside training.
COPY_BYTES_PER_SECOND = 8e9
WRITE_BYTES_PER_SECOND = 500e6
# Assumed of a bucket: a round trip; what one host copies of it; the default limit of a project for
# all of them (200 Gbit/s in a region, by Cloud Storage's documentation).
BUCKET_ROUND_TRIP = 0.04
BUCKET_BYTES_PER_SECOND = 1e9
BUCKET_LIMIT = 200e9 / 8
# Assumed: how much faster than needed it must be on paper.
BUCKET_MARGIN = 1.5
# Seen of array_record: to open a shard and read its first record takes so many reads one after
# another (assumed: a round trip each) and so many bytes; each decoding process does it for itself.
OPENING_ROUND_TRIPS = 4
OPENING_BYTES = 1.16e6
# Decoding threads of a process, which is how many reads it keeps under way.
THREADS_PER_WORKER = 2
# Share of a host's memory that data may take, beside decoding workers.
MEMORY_FOR_DATA = 0.8


def whole_run(
    config: Config, steps: Steps, machine: Machine, plan: dict[str, Any], held_out: int
) -> dict[str, Any]:
    """Seconds of each part of a run that nothing interrupts.

    Args:
      config: of the run.
      steps: its lengths.
      machine: a TPU machine.
      plan: of its step: `compute_seconds`, `step_seconds`, `checkpoint_bytes`, `fsdp`.
      held_out: examples of the evaluation split.

    Returns:
      `start`, `steps`, `evaluations` and `saves`, seconds in all; `evaluation` and `save` of one,
      the latter what training waits for, and `write`, what goes on beside it; counts
      `num_evaluations` and `num_saves`; `input`, images/s that all processors read for training;
      `hours` of everything.
    """
    host = machine.chip.host
    hosts = math.ceil(machine.size / host.chips)
    evaluations = math.ceil(steps.total / steps.evaluate_every)
    sets = 2 if config.optim.ema_decay > 0 else 1
    compute = plan["compute_seconds"] / config.data.global_batch * FORWARD_SHARE * held_out * sets
    for_training, for_evaluation = (
        rate * host.cpus * hosts for rate in IMAGES_PER_CPU[get_variant(config.model.name).task]
    )
    decode = held_out / for_evaluation
    evaluation = max(compute, decode) + EVALUATION_PAUSE
    every = config.checkpoint.every_steps
    saves = evaluations + (steps.total // every if every else 0)
    # A replicated state is written by one host, a split one by those that share it.
    of_host = plan["checkpoint_bytes"] / max(plan["fsdp"] // host.chips, 1)
    copy, write = of_host / COPY_BYTES_PER_SECOND, of_host / WRITE_BYTES_PER_SECOND
    between = steps.total * plan["step_seconds"] / saves
    # A save waits for the one before it; an evaluation runs beside the writing of its step.
    save = copy + max(write - between - evaluation, 0)
    parts = {
        "start": START_SECONDS,
        "steps": steps.total * plan["step_seconds"],
        "evaluations": evaluations * evaluation,
        "saves": saves * save + max(write - evaluation, 0),
    }
    return parts | {
        "evaluation": evaluation,
        "save": save,
        "write": write,
        "num_evaluations": evaluations,
        "num_saves": saves,
        "input": for_training,
        "hours": sum(parts.values()) / 3600,
    }


def feeding(
    machine: Machine, task: str, images_per_second: float, size: int, shards: int, examples: int
) -> dict[str, float | str]:
    """How fast a run must get its images, how fast places give them, and which is best.

    A bucket is best where it keeps up, with a margin, and is opened sooner than it is copied; else
    memory that holds the data, else a disk.

    Args:
      machine: a TPU machine.
      task: of the model.
      images_per_second: of the run, over all hosts.
      size: bytes of the prepared dataset.
      shards: its files.
      examples: of its training split.

    Returns:
      Of one host, images/s: `needed`; `decoded`, what its cores can; `bucket`, records at random
      places of a mounted bucket, once all shards are open. Seconds: `opening_seconds`, until they
      are; `copy_seconds`, of the whole dataset to each host. And `best`: bucket, memory or disk.
    """
    host = machine.chip.host
    hosts = math.ceil(machine.size / host.chips)
    needed = images_per_second / hosts
    latency = host.cpus * THREADS_PER_WORKER / BUCKET_ROUND_TRIP
    bandwidth = min(BUCKET_BYTES_PER_SECOND, BUCKET_LIMIT / hosts)
    bucket = min(latency, bandwidth * examples / size)
    # The processes of a host open at the same time, the shards of a process one after another.
    round_trips = shards * OPENING_ROUND_TRIPS * BUCKET_ROUND_TRIP
    opening = max(round_trips, host.cpus * shards * OPENING_BYTES / bandwidth)
    copying = size / bandwidth
    if bucket >= BUCKET_MARGIN * needed and opening <= copying:
        best = "bucket"
    else:
        best = "memory" if size < MEMORY_FOR_DATA * host.memory else "disk"
    return {
        "needed": needed,
        "decoded": host.cpus * IMAGES_PER_CPU[task][0],
        "bucket": bucket,
        "opening_seconds": opening,
        "copy_seconds": copying,
        "best": best,
    }
