"""In what precision gradients are summed over devices, and parameters gathered: programs, read.

The programs are those handed to the compiler for TPUs, which are the same for any number of them;
what it makes of them is in tests/planning/test_plan.py, which takes minutes.
"""

import re

import jax
import pytest

from convnext_jax import sharding, tree
from convnext_jax.config import from_dict
from convnext_jax.errors import InputError
from convnext_jax.planning import compiling
from convnext_jax.planning.compiling import Job, Variant
from convnext_jax.planning.machines import parse_machine
from convnext_jax.step_builder import build_step

# All kernels are of different shapes, so that a shape names its parameter.
VALUES = {
    "model": {"name": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (32, 48, 160, 192)},
    "data": {"global_batch": 32, "image_size": 32},
    "augment": {"mixup": 0.8, "mix_group": 4},
    "optim": {"warmup_epochs": 0.0},
    "num_epochs": 1.0,
}


def program(fsdp=1, dtype="bfloat16", **optim):
    """The step's text, the shapes of its parameters, and those that are split."""
    values = VALUES | {
        "model": VALUES["model"] | {"dtype": dtype},
        "optim": VALUES["optim"] | optim,
    }
    job = Job(from_dict(values), Variant(fsdp, False), parse_machine("gpu:8xH100"), None, 10, 1000)
    mesh = sharding.create_mesh(fsdp=fsdp)
    step = build_step(job.config, mesh, 10, 1000)
    traced = step.function.trace(step.abstract_state, compiling.abstract_batch(job, step))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    shapes = {
        name: p.shape for name, p in tree.flatten_with_names(step.abstract_state.params).items()
    }
    split = {
        name
        for name, place in tree.flatten_with_names(step.state_shardings.params).items()
        if not place.is_fully_replicated
    }
    return text, shapes, split


def widened(text, shape):
    """Whether the program makes a float32 array of this shape of a bfloat16 one."""
    size = "x".join(map(str, shape))
    return f"(tensor<{size}xbf16>) -> tensor<{size}xf32>" in text


def test_gradients_are_float32_before_they_are_summed():
    text, shapes, _ = program()
    # A gradient that was bfloat16 anywhere between its sum and the optimiser is converted.
    assert [name for name, shape in shapes.items() if widened(text, shape)] == []
    # Sums over pixels, of biases and layer scales, run in float32 as well.
    sums = re.findall(r"stablehlo\.reduce.*stablehlo\.add.*-> tensor<(?:\d+x)*(\w+)>", text)
    assert len(sums) > 20 and "bf16" not in sums


def test_gradients_of_kernels_may_be_summed_in_bfloat16():
    text, shapes, _ = program(gradient_sum="bfloat16")
    narrow = {name for name, shape in shapes.items() if widened(text, shape)}
    # The head is float32 in every model.
    assert narrow == {n for n in shapes if n.endswith("kernel") and not n.startswith("head")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fsdp_gathers_in_the_dtype_of_the_computation(dtype):
    text, shapes, split = program(fsdp=8, dtype=dtype)
    constraints = re.findall(r"sharding_constraint .*?<@\w+, (.*)> : tensor<([\dx]*)x(\w+)>", text)
    whole = {(size, kind) for places, size, kind in constraints if "fsdp" not in places}
    parts = {(size, kind) for places, size, kind in constraints if '{"fsdp"}' in places}
    short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    sizes = {"x".join(map(str, shapes[name])) for name in split}
    assert len(sizes) == len(split) > 5
    assert {(size, short) for size in sizes} == whole
    # Gradients are split the way the parameters are, in float32.
    assert {(size, "f32") for size in sizes} <= parts
    assert {kind for size, kind in parts if size in sizes} == {"f32"}


def test_the_head_is_gathered_in_float32():
    # It computes in float32; 192 x 128 values are enough to be split.
    dtypes = {"head/kernel": "float32", "dense/kernel": "bfloat16"}
    params = {"head": {"kernel": None}, "dense": {"kernel": None}}
    params = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((192, 128), "float32"), params, is_leaf=lambda x: x is None
    )
    mesh = sharding.create_mesh(fsdp=8)
    function = sharding.gathering(lambda p: p, mesh, dtypes)
    text = jax.jit(function).lower(params).as_text()
    kinds = re.findall(r"sharding_constraint .*tensor<192x128x(\w+)>", text)
    assert sorted(kinds) == ["bf16", "f32"]


def test_only_the_dtype_of_the_model_sums_in_bfloat16():
    with pytest.raises(InputError, match=r"`optim.gradient_sum` \(='bfloat16'\) must be float32"):
        from_dict(VALUES | {"optim": {"gradient_sum": "bfloat16"}})
