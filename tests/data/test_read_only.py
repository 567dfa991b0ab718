"""A container whose root cannot be written, and a user without a home: nowhere to keep anything."""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent

PROGRAM = """
import os, sys
import numpy as np
from PIL import Image
from convnext_jax.data import resample, sources
from convnext_jax.classification.transforms import EvalTransform
assert sources.__file__.startswith(sys.argv[1]), sources.__file__
for place in (sys.argv[1], os.environ["HOME"]):
    assert not os.access(place, os.W_OK), place
image = Image.fromarray(np.zeros((300, 400, 3), np.uint8))
assert EvalTransform(160)(image).shape == (160, 160, 3)
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot
"""


def as_anybody():
    """Root, too, is then kept from writing where nobody may: no CAP_DAC_OVERRIDE after the exec."""
    if os.getuid() == 0:
        drop, override = 24, 1  # PR_CAPBSET_DROP
        ctypes.CDLL(None).prctl(drop, override, 0, 0, 0)


def test_images_are_resized_where_nothing_can_be_written(tmp_path):
    """It ended with "cannot cache function 'resize': no locator available"."""
    installed = tmp_path / "installed"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "convnext_jax", installed / "convnext_jax", ignore=ignored)
    home = tmp_path / "home"
    home.mkdir()
    for folder, _, _ in os.walk(installed):
        os.chmod(folder, 0o555)
    os.chmod(home, 0o555)
    env = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    env |= {"HOME": str(home), "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(installed)]
    done = subprocess.run(
        command,
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=as_anybody,
    )
    os.chmod(home, 0o755)
    for folder, _, _ in os.walk(installed):
        os.chmod(folder, 0o755)
    assert done.returncode == 0, done.stderr[-2000:]
