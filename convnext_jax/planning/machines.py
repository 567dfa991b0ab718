"""Machines that a program can be compiled for without having them, and figures of their chips.

A machine is named by its chip and shape, `v5e:16x16`, or, where it is several slices, with their
number in front, `2xv5e:16x16`; GPUs by their number and name, `gpu:8xH100`.
"""

import dataclasses
import importlib.util
import math
import os
import re
import shutil
from typing import Any

from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh

from convnext_jax.errors import InputError, require_one_of
from convnext_jax.planning import dumps
from convnext_jax.planning.gpu_targets import TARGETS, description
from convnext_jax.sharding import AXES, create_mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Host:
    """A virtual machine of a slice of several.

    Attributes:
      chips: that it has.
      cpus: hardware threads.
      memory: bytes.
    """

    chips: int
    cpus: int
    memory: int


# From Kubernetes Engine's table of TPU machine types: ct4p-hightpu-4t, ct5lp-hightpu-4t,
# ct5p-hightpu-4t, ct6e-standard-4t. Of GPUs: eight in a machine, as a3-highgpu-8g has them.
_V4 = Host(4, 240, 407 * GIB)
_V5E = Host(4, 112, 192 * GIB)
_V5P = Host(4, 208, 448 * GIB)
_V6E = Host(4, 180, 720 * GIB)
_GPUS = Host(8, 208, 1872 * GIB)


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public figures of a chip.

    Attributes:
      host: what it is in.
      hbm: bytes of its memory.
      bandwidth: bytes a second between the chip and its memory.
      peak: floating-point operations a second, bfloat16 with float32 sums.
      clock: cycles a second at which its matrix units reach `peak`: a matrix unit of side s makes
        2 s**2 operations a cycle; a bundle of a schedule starts in each. 0 where the compiler
        states no cycles.
      link: bytes a second that it can send to its neighbours, over all links together, one way; for
        a GPU, over NVLink.
      network: bytes a second that it can send to other slices, for a GPU to other hosts: its share
        of the host's network cards; 0 where that is not published.
      config: how the compiler calls a chip whose two cores work as one device.
    """

    host: Host
    hbm: int
    bandwidth: float
    peak: float
    clock: float = 0.0
    link: float = 0.0
    network: float = 0.0
    config: str | None = None


# From Cloud TPU's documentation, pages v4, v5e, v5p, v6e (a link's bandwidth is half of what they
# call bidirectional). Matrix units of side 128: v4 8, v5e 4, v5p 8; of v6e, 4 times 256 fit its
# peak and the compiler's own cycles for a large product. The network of v5e and v6e: 6.4 and 25.6
# Tbit/s for a pod of 256 chips, which are two cards of 100 and four of 200 Gbit/s for eight chips.
CHIPS = {
    "v4": Chip(_V4, 32 * GIB, 1228e9, 275e12, 1.05e9, 300e9, config="megacore"),
    "v5e": Chip(_V5E, 16 * GIB, 819e9, 197e12, 1.5e9, 200e9, 6.4e12 / 8 / 256),
    "v5p": Chip(_V5P, 95 * GIB, 2765e9, 459e12, 1.75e9, 600e9),
    "v6e": Chip(_V6E, 32 * GIB, 1640e9, 918e12, 1.75e9, 400e9, 25.6e12 / 8 / 256),
}
# From NVIDIA's data sheets (SXM; dense bfloat16); the network is that of its DGX machines, with a
# card for each GPU.
GPUS = {
    "A100": Chip(_GPUS, 80 * 10**9, 2039e9, 312e12, link=300e9, network=25e9),
    "H100": Chip(_GPUS, 80 * 10**9, 3350e9, 989e12, link=450e9, network=50e9),
    "H200": Chip(_GPUS, 141 * 10**9, 4800e9, 989e12, link=450e9, network=50e9),
    "B200": Chip(_GPUS, 180 * 10**9, 8000e9, 2250e12, link=900e9, network=50e9),
}

_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_COMPILER_SETTINGS = {
    # Else it asks Google Cloud's metadata server which machine it runs on, and waits.
    "TPU_SKIP_MDS_QUERY": "1",
    # Two programs may compile at once: no TPU is opened, which only one could.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Else it complains that it is on no TPU machine.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5e-16",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A number of equal chips.

    Attributes:
      name: as the user wrote it.
      kind: of the chip; a key of `CHIPS` or `GPUS`.
      chip: its figures.
      size: number of chips, each of which is one device, over all slices.
      slices: joined by the data-centre network.
      is_gpu: whether they are GPUs.
    """

    name: str
    kind: str
    chip: Chip
    size: int
    slices: int = 1
    is_gpu: bool = False


def parse_machine(name: str) -> Machine:
    """Reads a machine's name.

    Args:
      name: such as `v5e:16x16`, `v4:4x4x8`, `2xv5e:16x16` or `gpu:8xH100`.

    Raises:
      InputError: it is not written so, or names an unknown chip.
    """
    kind, _, shape = name.partition(":")
    if kind == "gpu":
        match = re.fullmatch(r"([1-9]\d*)x(\w+)", shape)
        if match is None:
            raise InputError(f"`--topology` (={name}) must be written gpu:NUMBERxNAME, gpu:8xH100")
        require_one_of("--topology, its GPU", match[2], GPUS)
        size = int(match[1])
        if size > _GPUS.chips and size % _GPUS.chips:
            raise InputError(
                f"`--topology` (={name}) must be whole hosts of {_GPUS.chips} GPUs, or one of fewer"
            )
        return Machine(name, match[2], GPUS[match[2]], size, is_gpu=True)
    several = re.fullmatch(r"([1-9]\d*)x(v\w+)", kind)
    slices, kind = (int(several[1]), several[2]) if several else (1, kind)
    require_one_of("--topology, its chip", kind, [*CHIPS, "gpu"])
    # The 3D tori have three sides, the 2D ones two.
    sides = 3 if kind in ("v4", "v5p") else 2
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) is None or shape.count("x") != sides - 1:
        example = {2: "4x4", 3: "2x2x2"}[sides]
        raise InputError(
            f"`--topology` (={name}) must give the {sides} sides of {kind}, such as"
            f" {kind}:{example}"
        )
    size = slices * math.prod(int(side) for side in shape.split("x"))
    return Machine(name, kind, CHIPS[kind], size, slices)


def describe_devices(machine: Machine) -> list[Any]:
    """The devices of a machine, as the compiler describes them.

    The compiler for TPUs is asked for its schedules where this loads it: see `dumps.py`.

    Raises:
      InputError: the compiler is not installed or does not know the shape.
    """
    found = _gpus(machine) if machine.is_gpu else _tpus(machine)
    if len(found) != machine.size:
        raise InputError(
            f"`--topology` (={machine.name}) must have one device a chip (={machine.size}), and has"
            f" {len(found)}"
        )
    return found


def _tpus(machine: Machine) -> list[Any]:
    for name, value in _COMPILER_SETTINGS.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if machine.chip.config is not None:
        options["chip_config_name"] = machine.chip.config
    if machine.slices > 1:
        options["num_slices"] = machine.slices
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("the TPU compiler must be installed: pip install '.[plan]', on Linux")
    with dumps.requested():
        name = machine.name[machine.name.index("v") :]
        return _described(machine, platform="tpu", topology_name=name, **options)


def _gpus(machine: Machine) -> list[Any]:
    # Else JAX's plugin asks the driver for its version where it is loaded.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if not any(_is_installed(name) for name in plugins) or not _assembler():
        raise InputError(
            "the GPU compiler must be installed: pip install '.[plan-gpu]', on Linux, in an"
            " environment of its own where there is no GPU"
        )
    hosts = math.ceil(machine.size / machine.chip.host.chips)
    return _described(
        machine,
        platform="cuda",
        topology_name="",
        topology=f"1x{hosts}x{machine.size // hosts}",
        target_config=description(TARGETS[machine.kind]),
    )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it is in is not there
        return False


def _assembler() -> bool:
    """Whether XLA will find what makes machine code of its PTX."""
    wheels = ("nvidia.cuda_nvcc", "nvidia.cu13")
    return shutil.which("ptxas") is not None or any(_is_installed(name) for name in wheels)


def _described(machine: Machine, **options: Any) -> list[Any]:
    try:
        return list(topologies.get_topology_desc(**options).devices)
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"`--topology` (={machine.name}) must be a machine that the compiler knows: {said}"
        ) from error


def share_of_memory(machine: Machine) -> float:
    """Of a chip's memory, what JAX lets a program have: of a GPU's three quarters by default.

    Raises:
      InputError: XLA_PYTHON_CLIENT_MEM_FRACTION, which says otherwise, is no such share.
    """
    if not machine.is_gpu:
        return 1.0
    given = os.environ.get(_SHARE, "0.75")
    try:
        share = float(given)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"`{_SHARE}` (={given}) must be a number above 0 and at most 1")
    return share


def mesh_of(machine: Machine, devices: list[Any] | None, fsdp: int) -> Mesh | AbstractMesh:
    """A mesh on devices that are only described.

    Args:
      machine: whose they are.
      devices: from `describe_devices`; None: a mesh without any, on which nothing can be compiled.
      fsdp: number of chips along `fsdp`; the rest lies along `data`.

    Raises:
      InputError: `fsdp` does not divide the number of chips of a slice.
    """
    chips = machine.size // machine.slices
    if fsdp < 1 or chips % fsdp:
        raise InputError(
            f"`--fsdp` (={fsdp}) must be positive and divide the number of chips"
            f"{' of a slice' if machine.slices > 1 else ''} (={chips})"
        )
    if devices is None:
        types = (AxisType.Auto,) * len(AXES)
        return AbstractMesh((machine.size // fsdp, fsdp), AXES, axis_types=types)
    return create_mesh(fsdp=fsdp, slices=machine.slices, devices=devices)
