"""What may import what: layers of the package, homes of heavy libraries, and what models need."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "convnext_jax"

# A file imports its own package and strictly lower ranks. Errors are below everything, so that
# everything can raise them.
RANKS = {
    "errors": -1,
    "arguments": 0,
    "constants": 0,
    "tree": 0,
    "ops": 0,
    "retry": 0,
    "interrupts": 0,
    "command": 1,
    "progress": 0,
    "processes": 1,
    "sharding": 1,
    "models": 1,
    "data": 2,
    "optim": 2,
    "checkpointing": 2,
    "convert": 2,
    "config_ranges": 1,
    "config": 2,
    "config_files": 3,
    "config_keys": 3,
    "weights": 3,
    "training": 4,
    "classification": 5,
    "segmentation": 5,
    "detection": 5,
    "wings": 6,
    "step_builder": 6,
    "starting": 6,
    "builders": 6,
    "export": 6,
    "planning": 6,
    "report": 6,
    "scoring": 7,
    "reproducing": 8,
    "locating": 8,
    "main": 9,
    "check": 9,
    "plan": 9,
    "evaluate": 9,
    "predict": 9,
    "reproduce": 9,
}
SIDEWAYS = {
    ("builders", "report"),
    ("builders", "starting"),
    ("builders", "step_builder"),
    ("builders", "wings"),
    ("step_builder", "wings"),
    ("planning", "step_builder"),
}
HOMES = {
    "orbax": "checkpointing",
    "grain": "data",
    "numba": "data",
    "tensorflow_datasets": "data",
    "torch": "convert",
    "clu": "training",
    "onnx": "export",
    "onnxruntime": "export",
    "pycocotools": "data",
}
# These import the standard library and nothing else but JAX, Flax and NumPy.
LEAN = {"errors", "interrupts", "command", "constants", "tree", "ops", "models"}

# What JAX and Flax themselves import at `from flax import nnx`, apart from the standard library.
NEEDED_BY_JAX = ["jaxlib", "ml_dtypes", "opt_einsum"]
NEEDED_BY_FLAX = [
    "absl",
    "msgpack",
    "optax",
    "rich",
    "treescope",
    "typing_extensions",
    "yaml",
]


def imports_of(path: pathlib.Path) -> list[tuple[str, int]]:
    """Names and lines of all absolute imports in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            # `from convnext_jax import x` imports the module x.
            below = [f"{node.module}.{a.name}" for a in node.names]
            found += [(name, node.lineno) for name in below]
    return found


def files() -> list[pathlib.Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def unit_of(path: pathlib.Path) -> str:
    """The top-level module or package of `convnext_jax` that a file belongs to.

    A package's `__main__.py` is a command and stands above everything.
    """
    if path.name == "__main__.py":
        return "main"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_and_homes(path):
    unit = unit_of(path)
    assert unit in RANKS, f"{unit} has no rank"
    for name, line in imports_of(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        library, *rest = name.split(".")
        if library == "convnext_jax":
            # The package's own attributes, such as `__version__`, have no rank.
            if rest[0] in RANKS and rest[0] != unit and (unit, rest[0]) not in SIDEWAYS:
                assert RANKS[rest[0]] < RANKS[unit], where
        else:
            assert HOMES.get(library, unit) == unit, where
            if unit in LEAN:
                assert library in {"jax", "flax", "numpy", *sys.stdlib_module_names}, where


def test_clu_is_imported_in_one_file():
    users = [p.name for p in files() if any(n.split(".")[0] == "clu" for n, _ in imports_of(p))]
    assert len(users) <= 1, users


def run(program: str) -> None:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing():
    run("""
import sys
import convnext_jax
assert "create_model" in dir(convnext_jax)
for library in ("jax", "flax", "numpy"):
    assert library not in sys.modules, library
try:
    convnext_jax.creat_model
except AttributeError as error:
    assert "creat_model" in str(error)
else:
    raise AssertionError("an unknown name was found")
""")


def test_models_need_only_jax_flax_and_numpy():
    allowed = ["convnext_jax", "jax", "flax", "numpy", *NEEDED_BY_JAX, *NEEDED_BY_FLAX]
    run(f"""
import sys

ALLOWED = {{*sys.stdlib_module_names, *{allowed}}}

class Absent:
    # Finds what is allowed where it is, and nothing else, as if it were not installed.
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        # The standard library's build data is named after the platform.
        if name.split(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec), None)

sys.meta_path[:] = [Absent()]
import numpy as np
import convnext_jax
assert len(convnext_jax.list_models("*convnext*")) == 119
model = convnext_jax.create_model("convnext_atto", 3, depths=(1,), dims=(4,), kernel_size=3)
assert np.isfinite(model(np.ones((1, 32, 32, 3), np.float32))).all()
for library in ("torch", "tensorflow", "grain", "orbax", "clu", "ml_collections", "PIL"):
    assert library not in sys.modules, library
""")
