"""Flags by which XLA compiles fast: most of the time of tests goes to programs that run once."""

from importlib import metadata

FLAGS = {
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
# Options of a compilation whose results are to be the same to the bit in programs of other shapes.
SAME_BITS: dict[str, str] = {}
if metadata.version("jaxlib").startswith("0.10."):
    # Together two fifths less to compile. An XLA that does not know a flag would end the process.
    FLAGS |= {
        "--xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
        "--xla_cpu_use_fusion_emitters": "false",
        # In one piece: the other processes of a suite have the other cores.
        "--xla_cpu_parallel_codegen_split_count": "1",
    }
    SAME_BITS = {"xla_cpu_opt_preset": "CPU_OPT_PRESET_DEFAULT"}


def xla_flags(devices: int, given: str = "") -> str:
    """The value of XLA_FLAGS for so many virtual devices; what is given already is left alone."""
    wanted = {"--xla_force_host_platform_device_count": str(devices)} | FLAGS
    added = [f"{name}={value}" for name, value in wanted.items() if name not in given]
    return " ".join([given, *added]).strip()
