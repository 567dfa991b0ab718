"""The extras of setup.cfg bring what the commands need that docs name them for."""

import configparser
import pathlib
import re
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent

# Runs commands with nothing to import but the standard library and the packages of argv[1]; each
# further argument is a command, its module first.
PROGRAM = """
import runpy, sys

ALLOWED = {*sys.stdlib_module_names, "convnext_jax", *sys.argv[1].split(",")}

class Absent:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        # The standard library's build data is named after the platform.
        if name.split(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec), None)

sys.meta_path[:] = [Absent()]
for command in sys.argv[2:]:
    module, *sys.argv[1:] = command.split()
    try:
        runpy.run_module(f"convnext_jax.{module}", run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{command} ended with status {ended.code}")
"""


def requirements_of(extra: str) -> list[str]:
    """What setup.cfg says that the package with an extra needs, those it includes too."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], setup["options.extras_require"][extra]]
    found = []
    for line in filter(None, "\n".join(lines).splitlines()):
        nested = re.fullmatch(r"convnext_jax\[(.*)\]", line)
        found += [x for e in nested[1].split(",") for x in requirements_of(e)] if nested else [line]
    return found


def packages_of(extra: str) -> set[str]:
    """What can be imported once the package is installed with an extra, and nothing else."""
    done, waiting = set(), [(line, frozenset[str]()) for line in requirements_of(extra)]
    while waiting:
        line, extras = waiting.pop()
        asked = Requirement(line)
        markers = [{"extra": name} for name in extras or {""}]
        if asked.marker and not any(asked.marker.evaluate(marker) for marker in markers):
            continue
        key = (asked.name.lower().replace("_", "-"), frozenset(asked.extras))
        if key not in done:
            done.add(key)
            needed = metadata.requires(asked.name) or []
            waiting += [(further, frozenset(asked.extras)) for further in needed]
    names = {name for name, _ in done}
    return {
        package
        for package, distributions in metadata.packages_distributions().items()
        if names & {d.lower().replace("_", "-") for d in distributions}
    }


@pytest.mark.parametrize(
    "extra, commands",
    [
        (
            "predict",
            [
                "predict --checkpoint run photo.png --csv table.csv --cam seen",
                "predict --checkpoint run photo.png --output embeddings.npz",
                "export --checkpoint run exported --formats stablehlo",
                "predict --checkpoint exported --runtime stablehlo photo.png",
            ],
        ),
        pytest.param(
            "onnx",
            [
                "export --checkpoint run exported --formats onnx",
                "predict --checkpoint exported --runtime onnx photo.png",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "convert",
            ["convert run back.pth --to facebook", "convert back.pth again"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_commands_run_with_their_extra_alone(extra, commands, tmp_path):
    packages = packages_of(extra)
    # Of what another extra brings; a list that has it all would show nothing.
    assert "jax" in packages and not packages & {"tensorflow", "grain", "clu", "timm"}
    # Beyond the size up to which Pillow alone resizes.
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    make = (
        "import convnext_jax as c; m = c.create_model('convnext_atto', 3);"
        " c.save_pretrained(m, 'run', 'convnext_atto')"
    )
    for program in ([make], [PROGRAM, ",".join(sorted(packages)), *commands]):
        done = subprocess.run(
            [sys.executable, "-c", *program], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
