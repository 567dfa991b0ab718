"""Measures models beside their peers: `python -m benchmarks.models --model convnext_tiny`.

Each contestant runs in a process of its own, with the same allocator settings and threads. They
compile and warm up, which is reported apart, and then take turns in rounds of some seconds; what
counts is the median of a contestant's rounds.

- `ours`: the jitted model function, in bfloat16 the faster of float32 and bfloat16 kernels, as in
  `Predictor`; in training `make_train_step` with AdamW on uint8 images.
- `nnx-naive`: the same program around `benchmarks/nnx_naive.py`.
- `timm`: PyTorch, channels last, fused AdamW, on images already normalised. In bfloat16 inference
  the faster of autocast and bfloat16 weights.
- `timm-compile`: the same under `torch.compile`; `--thorough` tries more of its settings.

Writes `benchmarks/results/MODEL-MODE-DEVICE-DTYPE.json` for each mode and dtype, and the table of
docs/performance.md from all such files; with `--out` only the files, into that directory. A peer
that fails is reported and recorded, and the others go on.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import check
from benchmarks.nnx_naive import create_naive
from convnext_jax.classification.loss import cross_entropy
from convnext_jax.constants import IMAGENET_1K_CLASSES, IMAGENET_MEAN, IMAGENET_STD
from convnext_jax.errors import InputError, RunError, exit_in_one_sentence, require_one_of
from convnext_jax.models.checks import require
from convnext_jax.models.registry import get_variant
from convnext_jax.models.spec import ModelSpec, kernel_dtypes, params_of, rounded_kernels
from convnext_jax.optim.optimizer import create_optimizer
from convnext_jax.training.state import initial_state
from convnext_jax.training.step import make_train_step

PEERS = ("timm", "timm-compile", "nnx-naive")
MODES = ("infer", "train")
DTYPES = ("float32", "bfloat16")
# Of the contestants' processes. By default glibc gives large buffers back to the kernel at every
# step and faults them in again, which slows some programs and not others; buffers of threads other
# than the first always, unless there is one arena for all. (A threshold of gigabytes for what is
# mapped apart is refused in silence, so nothing is.) With preallocation peak memory would mean
# nothing; with caches, compilation times.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}
LEARNING_RATE = 1e-5  # Small: weights stay ordinary numbers; denormals and NaN change the speed.

KEPT: list[Any] = []  # Schemas of operators, which live as long as the object that defined them.
Step = Callable[[], Any]  # Its result is what to wait for.


@dataclasses.dataclass(frozen=True)
class Job:
    """What a contestant is asked to do."""

    contestant: str  # `ours` or one of PEERS
    model: str
    mode: str  # one of MODES
    dtype: str  # one of DTYPES
    batch: int  # images a step
    image_size: int  # side of the square images, pixels
    platform: str  # JAX's name of the platform: cpu, gpu, tpu
    threads: int
    thorough: bool  # more settings of torch.compile

    @property
    def uses_torch(self) -> bool:
        """Whether the contestant runs in PyTorch, or else in JAX."""
        return self.contestant.startswith("timm")

    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Random pixels uint8 [N, H, W, 3], the same normalised in float32, labels int32 [N]."""
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (self.batch, self.image_size, self.image_size, 3), np.uint8)
        images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        labels = rng.integers(0, IMAGENET_1K_CLASSES, self.batch, np.int32)
        return pixels, images.astype(np.float32), labels


def jax_settings(job: Job) -> Iterator[tuple[str, Step]]:
    """The ways in which ours and the naive model run."""
    classes = IMAGENET_1K_CLASSES
    ours = ModelSpec(job.model, classes, {"dtype": job.dtype}).create
    naive = functools.partial(create_naive, job.model, classes, job.dtype)
    create = ours if job.contestant == "ours" else naive
    graph, _ = nnx.split(nnx.eval_shape(create))
    params = jax.jit(lambda: params_of(create()))()

    def apply(params: Any, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return nnx.merge(graph, params)(images, key=key)

    pixels, images, labels = job.data()
    if job.mode == "infer":
        infer, on_device = jax.jit(apply), jnp.asarray(images, job.dtype)
        yield "", lambda: infer(params, on_device)
        if job.contestant == "ours" and job.dtype != "float32":
            rounded = rounded_kernels(params, kernel_dtypes(nnx.eval_shape(create)))
            yield f"{job.dtype} kernels", lambda: infer(rounded, on_device)
        return
    schedule = optax.constant_schedule(LEARNING_RATE)
    optimizer = create_optimizer(schedule)

    def with_batch_stats(params: Any, batch_stats: Any, images: jax.Array, key: Any) -> Any:
        return apply(params, images, key), batch_stats  # of which there are none

    loss = cross_entropy(with_batch_stats, classes, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    step = make_train_step(loss, optimizer, schedule, seed=0)
    train = jax.jit(step, donate_argnums=0)
    batch = jax.device_put({"image": pixels, "label": labels})
    carried = [initial_state(params, optimizer, with_ema=False)]

    def train_once() -> Any:
        carried[0], metrics = train(carried[0], batch)
        return carried[0], metrics

    yield "", train_once


def torch_settings(job: Job) -> Iterator[tuple[str, Step]]:
    """The ways in which timm's model runs: a name and a step each, built when asked for."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if job.contestant == "timm-compile" and not any(map(shutil.which, compilers)):
        raise InputError("torch.compile needs a C++ compiler such as g++, and there is none")
    torch, timm = import_timm()
    device = {"cpu": "cpu", "gpu": "cuda"}.get(job.platform)
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"`torch` (={torch.__version__}) must have JAX's device ({job.platform})")
    torch.set_num_threads(job.threads)
    if device == "cuda":
        # TF32, which is what JAX makes of float32 there.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True

    casts = {"float32": [""], "bfloat16": ["autocast"]}[job.dtype]
    if job.dtype == "bfloat16" and job.mode == "infer":
        casts.append("bfloat16 weights")
    compilations: dict[str, dict[str, Any] | None] = {"": None}
    if job.contestant == "timm-compile":
        compilations = {"default": {}}
        if job.thorough and device == "cuda":
            compilations["max-autotune"] = {"mode": "max-autotune"}
        elif job.thorough and job.mode == "infer":
            compilations["freezing"] = {"options": {"freezing": True}}
    for cast, (compilation, options) in itertools.product(casts, compilations.items()):
        name = ", ".join(filter(None, [cast, compilation]))
        yield name, torch_step(job, torch, timm, device, cast, options)


def torch_step(
    job: Job, torch: Any, timm: Any, device: str, cast: str, options: dict[str, Any] | None
) -> Step:
    """Builds timm's model and its step; `options` are those of `torch.compile`, None: eager."""

    def compiled(function: Any) -> Any:
        return function if options is None else torch.compile(function, **options)

    model = timm.create_model(job.model, num_classes=IMAGENET_1K_CLASSES)
    model = model.to(device, memory_format=torch.channels_last).train(job.mode == "train")
    images, labels = (torch.from_numpy(array).to(device) for array in job.data()[1:])
    images, labels = images.permute(0, 3, 1, 2), labels.long()  # Channels last in memory.
    if cast == "bfloat16 weights":
        model, images = model.bfloat16(), images.bfloat16()
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, cast == "autocast")
    if job.mode == "infer":
        forward = compiled(model)

        def infer_once() -> Any:
            with torch.no_grad(), autocast():
                return forward(images)

        return infer_once
    loss_of = compiled(lambda x, y: torch.nn.functional.cross_entropy(model(x), y))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05, fused=True)

    def train_once() -> Any:
        with autocast():
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return train_once


def import_timm() -> tuple[Any, Any]:
    """Imports PyTorch and timm, also beside a CPU build of PyTorch with torchvision's CUDA wheel.

    torchvision, and timm with it, cannot be imported there until two operators have a schema.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return torch, timm


def time_steps(job: Job, step: Step, steps: int) -> float:
    """Runs `steps` steps to their end; returns the seconds that each took."""

    def wait(result: Any) -> None:
        if not job.uses_torch:
            jax.block_until_ready(result)
        elif job.platform == "gpu":
            sys.modules["torch"].cuda.synchronize()

    began, result = time.perf_counter(), None
    for _ in range(steps):
        result = step()
        if job.platform == "cpu":  # There JAX would run several steps at once.
            wait(result)
    wait(result)
    return (time.perf_counter() - began) / steps


def prepare(job: Job) -> tuple[Step, dict[str, Any]]:
    """Builds, compiles and warms up; returns the step of the fastest setting, and its record."""
    settings = torch_settings(job) if job.uses_torch else jax_settings(job)
    kept, tried, failure = None, {}, RuntimeError("there is no setting")
    while True:
        # Of the settings before, only the best stays in memory.
        name, step, began = "building failed", None, time.perf_counter()
        try:
            name, step = next(settings, ("", None))
            if step is None:
                break
            record = {"setting": name, "build_seconds": time.perf_counter() - began}
            record["first_step_seconds"] = time_steps(job, step, 1)
            record["warmup_seconds"] = 2 * time_steps(job, step, 2)
            tried[name] = min(time_steps(job, step, 2) for _ in range(3))
        except Exception as error:
            failure, tried[name] = error, check.sentence(error)
            continue
        if kept is None or tried[name] < tried[kept[1]["setting"]]:
            kept = step, record
    if kept is None:
        raise failure
    return kept[0], kept[1] | {"settings_seconds_per_step": tried}


def serve(pipe: Any, job: Job) -> None:
    """A contestant's process: prepares, then answers what comes through the pipe until it closes.

    A number of steps is answered with the seconds each took, 0 with the device's limits.
    """
    try:
        step, record = prepare(job)
        pipe.send(record)
        while True:
            steps = pipe.recv()
            if steps == 0:
                pipe.send(check.device_limits(job.dtype, job.platform, job.uses_torch))
                continue
            time_steps(job, step, 1)  # The others had the caches in between.
            seconds = time_steps(job, step, steps)
            pipe.send({"seconds": seconds, "peak_memory_bytes": check.peak_memory(job.uses_torch)})
    except EOFError:
        pass
    except Exception as error:
        pipe.send({"error": check.sentence(error)})


class Contestant:
    """A process that runs a job; to be closed. `record` is what it gave, or has an `error`."""

    def __init__(self, job: Job):
        """Starts it and waits until it is ready."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, job))
        self._process.start()
        theirs.close()
        self.record: dict[str, Any] = self._receive() | {"rounds_seconds_per_step": []}
        print(f"  {job.contestant}: {self.record.get('error', 'ready')}", flush=True)

    def run_round(self, seconds: float) -> None:
        """Runs steps for about so many seconds, unless it has failed."""
        if "error" in self.record:
            return
        trial = self.record["settings_seconds_per_step"][self.record["setting"]]
        self.record["steps_per_round"] = max(1, round(seconds / trial))
        answer = self.ask(self.record["steps_per_round"])
        if "error" in answer:
            self.record = answer
            return
        self.record["rounds_seconds_per_step"].append(answer["seconds"])
        self.record["peak_memory_bytes"] = answer["peak_memory_bytes"]

    def ask(self, steps: int) -> dict[str, Any]:
        """Asks as `serve` says and returns the answer, which may be an `error`."""
        with contextlib.suppress(OSError):  # Of a process that has gone; it is found out below.
            self._pipe.send(steps)
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        with contextlib.suppress(EOFError, OSError):
            return self._pipe.recv()
        self._process.join()
        return {"error": f"the process ended with status {self._process.exitcode}"}

    def close(self) -> None:
        """Ends it."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def take_turns(jobs: Sequence[Job], rounds: int, round_seconds: float) -> dict[str, dict[str, Any]]:
    """Measures contestants, all alive at once; returns their records, with `limits`.

    Raises:
      RunError: ours failed.
    """
    with contextlib.ExitStack() as stack:
        start = lambda job: stack.enter_context(contextlib.closing(Contestant(job)))  # noqa: E731
        running = {job.contestant: start(job) for job in jobs}
        for _ in range(rounds):
            for contestant in running.values():
                contestant.run_round(round_seconds)
        records = {name: contestant.record for name, contestant in running.items()}
        if "error" in records.get("ours", {}):
            raise RunError(f"ours could not be measured: {records['ours']['error']}")
        for name, contestant in running.items():
            if "error" not in records[name] and "error" not in (limits := contestant.ask(0)):
                records[name]["limits"] = limits
    return records


def names_of(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """Splits a flag's value at its commas; raises InputError unless each is known."""
    names = [name for name in text.split(",") if name]
    for name in names:
        require_one_of(flag, name, known)
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = functools.partial(parser.add_argument, metavar="")
    add("--model", default="convnext_tiny", help="one of list_models()")
    add("--mode", default="infer,train", help="infer, train or both")
    add("--dtype", default="float32,bfloat16", help="of the computation")
    add("--batch", type=int, default=8, help="images a step")
    add("--image-size", type=int, help="pixels; the model's own size by default")
    add("--peers", default=",".join(PEERS), help="any of %(default)s")
    add("--rounds", type=int, default=5, help="of each contestant")
    add("--round-seconds", type=float, default=5.0, help="about how long a round takes")
    add("--out", type=Path, help="directory for the results, in place of the project's")
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--thorough", help="try more settings of torch.compile, which takes long to compile")
    flag("--one-at-a-time", help="one contestant alive at a time, where memory is short")
    flags = parser.parse_args(arguments)
    os.environ.update(ENVIRONMENT)  # For the processes that this one starts.
    with exit_in_one_sentence():
        modes = names_of("mode", flags.mode, MODES)
        dtypes = names_of("dtype", flags.dtype, DTYPES)
        contestants = ["ours", *names_of("peers", flags.peers, PEERS)]
        for name in ("batch", "rounds", "round_seconds"):
            require(getattr(flags, name) > 0, name, getattr(flags, name), "be positive")
        size = get_variant(flags.model).input_size if flags.image_size is None else flags.image_size
        require(size >= 32, "image_size", size, "be at least 32 pixels")
        platform, threads = (check.this_device()[name] for name in ("platform", "threads"))
        check.warn_if_busy(threads)
        for mode, dtype in itertools.product(modes, dtypes):
            print(f"{flags.model}, {mode}, {dtype}", flush=True)
            what = (flags.model, mode, dtype, flags.batch, size, platform, threads, flags.thorough)
            jobs = [Job(contestant, *what) for contestant in contestants]
            records = {}
            for group in [[job] for job in jobs] if flags.one_at_a_time else [jobs]:
                records |= take_turns(group, flags.rounds, flags.round_seconds)
            paces = ("rounds", "round_seconds", "one_at_a_time")
            settings = dataclasses.asdict(jobs[0]) | {"environment": ENVIRONMENT}
            settings |= {name: getattr(flags, name) for name in paces}
            check.write_result(flags.out, check.summary(settings, records))


if __name__ == "__main__":
    main()
