"""Compiles a classifier's inference for one TPU chip that is not here, and prints what is known.

`python -m benchmarks.tpu_inference MODEL SLICE IMAGES`: bfloat16, one chip of the slice; JSON.
`benchmarks.tpu_step` calls it once for each form, as forms are chosen where a process begins.
"""

import argparse
import importlib.metadata
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convnext_jax.constants import IMAGENET_1K_CLASSES
from convnext_jax.models.flops import count_macs
from convnext_jax.models.spec import ModelSpec
from convnext_jax.planning import dumps
from convnext_jax.planning.compiling import read_compiled
from convnext_jax.planning.machines import describe_devices, parse_machine
from convnext_jax.planning.schedules import read_schedules

SIDE = 224


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("slice")
    parser.add_argument("images", type=int)
    arguments = parser.parse_args()
    machine = parse_machine(arguments.slice)
    mesh = Mesh(np.array(describe_devices(machine)[:1]), ("data",))
    here = NamedSharding(mesh, PartitionSpec())
    spec = ModelSpec(arguments.model, IMAGENET_1K_CLASSES, {"dtype": "bfloat16"})
    placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)  # noqa: E731
    params = jax.tree.map(placed, spec.abstract_params())
    images = placed(jnp.empty((arguments.images, SIDE, SIDE, 3), jnp.bfloat16))
    function = jax.jit(spec.function(), out_shardings=here)
    lowered = function.trace(params, images).lower(lowering_platforms=("tpu",))
    began = time.perf_counter()
    with dumps.collected() as folder:
        compiled = lowered.compile()
        seconds = time.perf_counter() - began
        schedules = {} if folder is None else read_schedules(folder)
    found = read_compiled(compiled, machine, arguments.images, schedules)
    found |= {
        "model": arguments.model,
        "topology": arguments.slice,
        "per_device_batch": arguments.images,
        "flops": 2 * count_macs(spec.function(), params, images),
        "compile_seconds": seconds,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
