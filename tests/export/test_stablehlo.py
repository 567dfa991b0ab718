"""Exported models in a process that has JAX and NumPy, and not this package or Flax."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from export.families import SPECS, side_of, variables
from random_models import random_images

from convnext_jax.errors import InputError
from convnext_jax.export import stablehlo as module
from convnext_jax.export.fold import fold
from convnext_jax.export.stablehlo import stablehlo

COUNTS = (1, 3, 4)
# Of all families by default; each count is a program of its own to compile elsewhere.
QUICK = {name: COUNTS if name == "V2" else (3,) for name in SPECS}
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
    for key in images:
        if key.startswith(f"{name}-"):
            found[key] = exported.call(images[key])
np.savez(f"{folder}/found.npz", **found)
"""


def exported(folder, counts, fold_too):
    """What the models make of images elsewhere, and here, by name, kind and count."""
    images, expected, names = {}, {}, []
    for number, (name, spec) in enumerate(SPECS.items()):
        params, stats = variables(spec)
        side, channels = side_of(spec), spec.overrides.get("in_channels", 3)
        most = np.asarray(random_images(max(COUNTS), side, side, channels, seed=number))
        apply = spec.function_with_batch_stats()
        outputs, _ = jax.jit(apply)(params, stats, most)
        logits = np.asarray(getattr(outputs, "decode", outputs))
        for kind in ("plain", "folded") if fold_too else ("plain",):
            arrays = fold(params)[0] if kind == "folded" else params
            program, shape = stablehlo(spec, arrays, stats, side)
            assert shape[0] == "n"
            names.append(f"{number}.{kind}")
            (folder / names[-1]).write_bytes(program)
            for count in counts[name]:
                images[f"{names[-1]}-{count}"] = most[:count]
                expected[f"{names[-1]}-{count}"] = logits[:count]
    np.savez(folder / "images.npz", **images)
    command = [sys.executable, "-c", ELSEWHERE, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "found.npz")), expected


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, ours in expected.items():
        assert found[key].dtype == np.float32
        # The same operations, which may be fused otherwise; rounding is 4e-7.
        atol = 1e-5 * float(abs(ours).max())
        np.testing.assert_allclose(found[key], ours, rtol=0, atol=atol, err_msg=key)


def test_logits_are_ours(tmp_path):
    """Of folded models too: tests/export/test_fold.py, as what is exported are parameters."""
    found, expected = exported(tmp_path, QUICK, fold_too=False)
    assert len(found) == len(SPECS) + 2
    assert_same(found, expected)


def test_a_model_that_is_too_large_is_named(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 1000)
    with pytest.raises(InputError, match="GiB of weights, and a StableHLO file must have less"):
        stablehlo(SPECS["V1"], *variables(SPECS["V1"]), 64)


@pytest.mark.slow  # a hundred programs
def test_every_family_folded_or_not_on_three_counts(tmp_path):
    found, expected = exported(tmp_path, dict.fromkeys(SPECS, COUNTS), fold_too=True)
    assert len(found) == len(SPECS) * 2 * len(COUNTS)
    assert_same(found, expected)
