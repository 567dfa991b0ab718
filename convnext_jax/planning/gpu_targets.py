"""GPUs as XLA's compiler must be told of them on a machine that has none.

The figures are those of XLA's own descriptions of these devices (`xla/backends/gpu/target_config`),
which its wheels do not accept by name. Nothing is tuned without the device: products and
convolutions keep the compiler's first choice.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """What the compiler lays its kernels out for.

    Attributes:
      name: as the driver says it.
      capability: of CUDA, such as (9, 0).
      accelerated: whether code may use what no later capability has, as `sm_90a` says.
      cores: streaming multiprocessors.
      lanes: float32 operations that a core starts in a cycle.
      clock: cycles a second.
      memory: bytes.
      bandwidth: bytes a second between the cores and that memory.
      cache: bytes of the second level.
      shared: bytes of a core's own memory, of which a block may have all but 1,024.
    """

    name: str
    capability: tuple[int, int]
    accelerated: bool
    cores: int
    lanes: int
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared: int


TARGETS = {
    "A100": Target(
        "NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        accelerated=False,
        cores=108,
        lanes=64,
        clock=1.41e9,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        cache=41_943_040,
        shared=167_936,
    ),
    "H100": Target(
        "NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        accelerated=True,
        cores=132,
        lanes=128,
        clock=1.98e9,
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
        cache=52_428_800,
        shared=233_472,
    ),
    "H200": Target(
        "NVIDIA H200 141GB HBM3e",
        capability=(9, 0),
        accelerated=True,
        cores=132,
        lanes=128,
        clock=1.98e9,
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
        cache=52_428_800,
        shared=233_472,
    ),
    "B200": Target(
        "NVIDIA B200",
        capability=(10, 0),
        accelerated=True,
        cores=148,
        lanes=128,
        clock=1.965e9,
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        cache=132_644_864,
        shared=233_472,
    ),
}


def description(target: Target) -> str:
    """A target as `GpuTargetConfigProto` in the text form of protocol buffers."""
    major, minor = target.capability
    extension = "ACCELERATED_FEATURES" if target.accelerated else "NONE"
    return f"""
gpu_device_info {{
  name: "{target.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {target.cores}
  fpus_per_core: {target.lanes}
  clock_rate_ghz: {target.clock / 1e9}
  device_memory_size: {target.memory}
  memory_bandwidth: {target.bandwidth}
  l2_cache_size: {target.cache}
  shared_memory_per_core: {target.shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {target.shared - 1024}
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  runtime_version: "12.8.0"
  driver_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{target.name}"
"""
