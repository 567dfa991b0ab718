"""Exported models in a process that has JAX and NumPy, and not this package or Flax."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from export.families import SPECS, side_of, variables
from random_models import random_images

from convnext_jax.export.fold import fold
from convnext_jax.export.stablehlo import stablehlo

COUNTS = (1, 3, 4)
# tests/export/test_fold.py has them all; to what is exported they are parameters like others.
FOLDED = ("V1", "V2")
# Reads each model and its images, and writes what it makes of them.
ELSEWHERE = """
import sys
for library in ("convnext_jax", "flax", "optax", "orbax"):
    sys.modules[library] = None
import jax, numpy as np
folder, *names = sys.argv[1:]
images = np.load(f"{folder}/images.npz")
found = {}
for name in names:
    exported = jax.export.deserialize(bytearray(open(f"{folder}/{name}", "rb").read()))
    assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
    number, kind = name.split(".")
    for key in images:
        if key.startswith(f"{number}-") and (kind == "plain" or key == f"{number}-1"):
            found[f"{kind}-{key}"] = exported.call(images[key])
np.savez(f"{folder}/found.npz", **found)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    images, expected, names = {}, {}, []
    for number, (name, spec) in enumerate(SPECS.items()):
        params, stats = variables(spec)
        side, channels = side_of(spec), spec.overrides.get("in_channels", 3)
        apply = spec.function_with_batch_stats()
        kinds = {"plain": params} | ({"folded": fold(params)[0]} if name in FOLDED else {})
        for kind, arrays in kinds.items():
            program, shape = stablehlo(spec, arrays, stats, side)
            names.append(f"{number}.{kind}")
            (folder / names[-1]).write_bytes(program)
            assert shape[0] == "n"
        most = random_images(max(COUNTS), side, side, channels, seed=number)
        images |= {f"{number}-{count}": most[:count] for count in COUNTS}
        outputs, _ = jax.jit(apply)(params, stats, most)
        expected[number] = np.asarray(getattr(outputs, "decode", outputs))
    np.savez(folder / "images.npz", **images)
    command = [sys.executable, "-c", ELSEWHERE, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "found.npz")), expected


@pytest.mark.parametrize(
    "name, kind", [*((name, "plain") for name in SPECS), *((name, "folded") for name in FOLDED)]
)
def test_logits_are_ours(results, name, kind):
    found, expected = results
    number = list(SPECS).index(name)
    for count in COUNTS if kind == "plain" else (1,):
        ours = expected[number][:count]
        theirs = found[f"{kind}-{number}-{count}"]
        assert theirs.dtype == np.float32
        # The same operations, which may be fused otherwise; rounding is 4e-7.
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * float(abs(ours).max()))
