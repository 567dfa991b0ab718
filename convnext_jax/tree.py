"""Names for the leaves of a parameter tree, such as ``stages/0/1/dwconv/kernel``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a JAX key path into a name with ``/`` between its parts."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """Maps the name of each leaf of `tree` to the leaf, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_names(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns a tree like `tree` whose leaves are `function(name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)


def first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Says how two named sets of arrays first differ in names or shapes, or None if they do not.

    Args:
      found: names to anything with a `shape`, what is there.
      expected: the same, what ought to be there. Its order decides which difference is first.
    """
    for name, leaf in expected.items():
        if name not in found:
            return f"`{name}` {tuple(leaf.shape)} is missing"
        if tuple(found[name].shape) != tuple(leaf.shape):
            return f"`{name}` has shape {tuple(found[name].shape)}, not {tuple(leaf.shape)}"
    for name, leaf in found.items():
        if name not in expected:
            return f"`{name}` {tuple(leaf.shape)} is not in the model"
    return None
