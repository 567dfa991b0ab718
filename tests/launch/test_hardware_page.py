"""Every command of docs/hardware.md works, for a user who may write in their home only."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from container import available, user_script
from fake_commands import ROOT
from hardware_page import blocks

# How many processes each block starts, with two tasks or hosts wherever the page has more.
STARTED = [1, 1, 2, 2, 2, 2, 2, 4, 0, 0]
PARTS = "convnext_jax configs launch docs tests requirements.txt setup.cfg pyproject.toml"


def test_the_page_is_followed(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for part in [*PARTS.split(), "README.md", "LICENSE"]:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, checkout / part)
    follow = [sys.executable, "tests/launch/hardware_page.py"]
    settings = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    if available():
        (tmp_path / "root").mkdir()
        environment = settings | {"HOME": "/home/user", "PYTHONPATH": "/home/user/checkout"}
        text = user_script(tmp_path / "root", "/home/user", checkout, follow, environment)
        command, environment = ["unshare", "--mount", "bash", "-c", text], None
    else:
        environment = os.environ | settings | {"PYTHONPATH": str(checkout)}
        command = follow
    result = subprocess.run(
        command, env=environment, cwd=checkout, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(json.loads(result.stdout).values()) == STARTED


@pytest.mark.parametrize("script", ["tpu_pod.sh", "k8s/render.py"])
def test_the_options_that_the_text_names_are_there(script):
    """Those outside of the blocks, which are run."""
    text = (ROOT / "docs" / "hardware.md").read_text()
    section = {"tpu_pod.sh": "A TPU slice", "k8s/render.py": "Kubernetes"}[script]
    (part,) = re.findall(rf"^## {section}\n(.*?)^## ", text, re.M | re.S)
    prose = re.sub(r"^```\n.*?^```$", "", part, flags=re.M | re.S)
    named = set(re.findall(r"`(--[a-z-]+)", prose)) - {"--build-arg"}
    assert named
    known = (ROOT / "launch" / script).read_text()
    assert {option for option in named if option not in known} == set()


def test_no_block_is_left_out():
    assert len(list(blocks())) == len(STARTED)
