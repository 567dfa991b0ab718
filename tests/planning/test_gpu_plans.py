"""Plans for GPUs: kernels and what they do, and steps compiled without a GPU."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from convnext_jax.config import from_dict
from convnext_jax.config_files import load_config
from convnext_jax.errors import InputError
from convnext_jax.ops import depthwise_gpu
from convnext_jax.planning import compiling, machines
from convnext_jax.planning.compiling import Job, Variant
from convnext_jax.planning.estimate import lower_bound
from convnext_jax.planning.machines import GPUS, parse_machine
from convnext_jax.planning.programs import read_program

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%dots (p0: bf16[16,32], p1: bf16[32,8]) -> bf16[16,8] {
  %p0 = bf16[16,32]{1,0} parameter(0)
  %p1 = bf16[32,8]{1,0} parameter(1)
  ROOT %dot = bf16[16,8]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[2,8,8,4]) -> bf16[2,8,8,6] {
  %x = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %k = bf16[6,3,3,4]{3,2,1,0} parameter(1)
  %a = bf16[16,32]{1,0} parameter(2)
  %b = bf16[32,8]{1,0} parameter(3)
  %same = bf16[2,8,32]{2,1,0} bitcast(%x)
  %fw = (bf16[2,8,8,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), WINDOW"__cudnn$convForward"
  %y = bf16[2,8,8,6]{3,2,1,0} get-tuple-element(%fw), index=0
  %in = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), WINDOW"__cudnn$convBackwardInput"
  %bw = (bf16[6,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), WINDOW"__cudnn$convBackwardFilter"
  %gemm = bf16[16,8]{1,0} custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", CONTRACTED
  %triton = bf16[16,8]{1,0} fusion(%a, %b), kind=kCustom, calls=%dots
  %sum = bf16[16,8]{1,0} all-reduce-start(%triton), replica_groups=[1,8]<=[8], to_apply=%add
  %summed = bf16[16,8]{1,0} all-reduce-done(%sum)
  ROOT %copy = bf16[2,8,8,6]{3,2,1,0} copy(%y)
}
""".replace(
    "WINDOW",
    "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target=",
).replace(
    "CONTRACTED",
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}',
)
# Along each side, of eight places six see three and two see two.
CONVOLUTION = 2 * 2 * 6 * 4 * (6 * 3 + 2 * 2) ** 2


def test_kernels_and_what_they_do():
    program = read_program(PROGRAM, kernels=True)
    found = {each.name: (each.matrix_flops, each.memory_bytes) for each in program.executed}
    x, k, y, a, b, c = (2 * n for n in (512, 216, 768, 512, 256, 128))  # bytes
    assert found == {
        "fw": (CONVOLUTION, x + k + y),
        "in": (CONVOLUTION, y + k + x),
        "bw": (CONVOLUTION, x + y + k),
        "gemm": (2 * 16 * 32 * 8, a + b + c),
        "triton": (2 * 16 * 32 * 8, a + b + c),
        "copy": (0, 2 * y),
    }
    assert program.totals() == {"all-reduce": {"count": 1, "bytes": c}}


def test_the_bound_is_by_bytes_and_products():
    program = read_program(PROGRAM, kernels=True)
    least = lower_bound(program, None, GPUS["H100"])
    assert least is not None and (least.schedule, least.without_schedule) == (0, 0)
    # So small that each kernel is bound by its bytes.
    size = sum(each.memory_bytes for each in program.executed)
    assert least.bound == least.memory == pytest.approx(size / 3350e9)
    assert least.matrix == pytest.approx((3 * CONVOLUTION + 2 * 8192) / 989e12)


@pytest.mark.parametrize("given", ["", "x", "0", "1.5", "nan"])
def test_a_share_of_memory_that_is_none(given, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", given)
    with pytest.raises(InputError, match=rf"MEM_FRACTION` \(={given}\) must be a number above 0"):
        machines.share_of_memory(parse_machine("gpu:1xA100"))
    assert machines.share_of_memory(parse_machine("v5e:2x2")) == 1


def test_what_needs_more_than_a_gpu_has_does_not_fit(monkeypatch):
    """XLA compiles it all the same."""
    found = {"room": -1, "memory": {"total": 10**12}, "fits": True, "compute_seconds": 1.0}
    monkeypatch.setattr(compiling, "read_compiled", lambda *_: found)

    class Step:
        def trace(self, *_):
            return self

        def lower(self, lowering_platforms):
            assert lowering_platforms == ("cuda",)
            return self

        def compile(self, options):
            return self

    step = types.SimpleNamespace(function=Step(), abstract_state=None, steps=None)
    monkeypatch.setattr(Job, "step", lambda self: step)
    monkeypatch.setattr(compiling, "analyse", lambda *_: {"memory": {"parameters": 4}})
    monkeypatch.setattr(compiling, "abstract_batch", lambda *_: None)
    job = Job(from_dict({}), Variant(1, False), parse_machine("gpu:1xA100"), [], 10, 1000)
    row = compiling.measure(job)
    assert row["fits"] is False and row["room"] == -1
    assert row["memory"] == {"parameters": 4, "total": 10**12}
    assert "compute_seconds" not in row and "hours" not in row


def needs_compiler(name):
    try:
        return machines.describe_devices(parse_machine(name))
    except InputError as error:
        pytest.skip(str(error))


def small_job(name, fsdp, dtype):
    model = {"name": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (64, 128, 128, 128)}
    values = {
        "model": model | {"dtype": dtype},
        "data": {"global_batch": 32, "image_size": 32},
        "optim": {"warmup_epochs": 0.0},
        "num_epochs": 1.0,
    }
    machine = parse_machine(name)
    devices = needs_compiler(name)
    return Job(from_dict(values), Variant(fsdp, False), machine, devices, 10, 1000)


@pytest.mark.slow  # three programs
@pytest.mark.parametrize(
    ("name", "fsdp", "dtype"),
    [
        ("gpu:8xH100", 1, "bfloat16"),
        ("gpu:8xA100", 8, "float32"),
        ("gpu:16xB200", 8, "float32"),
    ],
)
def test_a_step_compiles_without_a_gpu(name, fsdp, dtype):
    job = small_job(name, fsdp, dtype)
    row = compiling.measure(job)
    assert row["fits"] and row["compute_from"] == "bytes and products"
    assert row["memory"]["total"] < 10**9 < row["room"] < 0.75 * job.machine.chip.hbm
    assert 0 < row["small_instructions"] <= row["instructions"]
    assert 0 < row["compute_seconds"] < row["step_seconds"]
    sizes = 4 * sum(leaf.size for leaf in jax.tree.leaves(job.step().abstract_state.params))
    summed = sum(total["bytes"] for kind, total in row["collectives"].items() if "reduce" in kind)
    # The gradients, once, and a few numbers; what fsdp splits is gathered and scattered, and an
    # eighth of it exchanged between two hosts.
    assert sizes <= summed < 1.13 * sizes + 1024
    assert row["dtypes"]["all-reduce"] == ["f32"]
    assert ("all-gather" in row["collectives"]) == (fsdp > 1)
    assert (row["network_bytes"] > 0) == (job.machine.size > 8)


@pytest.mark.slow  # minutes of compilation
def test_what_a_step_of_tiny_takes_on_an_h200():
    """Counts that may fall: 46.9 GB and 1,631 kernels, 1,026 of less than 1 MB, were seen."""
    given = ["--config.data.global_batch=128", "--config.model.dtype=bfloat16"]
    config = load_config("configs/imagenet1k.py:tiny", given)
    machine, devices = parse_machine("gpu:1xH200"), needs_compiler("gpu:1xH200")
    row = compiling.measure(
        Job(config, Variant(1, False), machine, devices, 1000, 1_281_167, 50_000)
    )
    assert row["bytes_accessed"] < 47.5e9
    assert row["instructions"] < 1700 and row["small_instructions"] < 1050
    assert row["memory"]["temporary"] < 8e9
    # A forward and two backward passes of 4.5 billion multiply-adds; the rest is depthwise.
    assert row["matrix_seconds"] * machine.chip.peak == pytest.approx(
        128 * 3 * 2 * 4.35e9, rel=0.02
    )


@pytest.mark.slow  # two programs
@pytest.mark.parametrize(("gradient", "count"), [(False, 4 * 7 * 8), (True, 2 * 7 * 7 * 7)])
def test_the_depthwise_kernels_multiply_and_add_at_once(gradient, count, tmp_path):
    mesh = machines.mesh_of(parse_machine("gpu:1xH200"), needs_compiler("gpu:1xH200"), 1)
    place = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((128, 56, 56, 96), jnp.bfloat16, sharding=place)
    kernel = jax.ShapeDtypeStruct((7, 7, 1, 96), jnp.bfloat16, sharding=place)
    if gradient:
        traced = jax.jit(depthwise_gpu.pallas_filter_gradient).trace(x, kernel, x)
    else:
        traced = jax.jit(depthwise_gpu.pallas_forward).trace(x, kernel)
    traced.lower(lowering_platforms=("cuda",)).compile({"xla_dump_to": str(tmp_path)})
    code = max((file.read_text() for file in tmp_path.glob("*.ptx")), key=len)
    # Each thread's channels, times a filter row's taps and the pixels of a strip, less those that
    # lie beyond an image of one strip.
    assert code.count("fma.rn.f32") == count
    assert "mul.f32" not in code and "mul.rn.f32" not in code
