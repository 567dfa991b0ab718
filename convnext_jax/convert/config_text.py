"""The text of mmcv's or mmengine's config in a file's `meta`, which is read and not run."""

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from convnext_jax.convert import published
from convnext_jax.convert.read import META
from convnext_jax.errors import InputError

Settings = Mapping[str, Mapping[str, Any]]

_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Unread:
    """What stands where a value should be, such as the name of a variable."""

    text: str

    def __str__(self) -> str:
        """As the config has it."""
        return self.text


def parse(settings: Settings) -> ast.AST | None:
    """The config as a syntax tree. None: there is none, or it is no Python."""
    meta = settings.get(META, {})
    text = meta.get("config", meta.get("cfg"))  # the latter since mmengine
    if not isinstance(text, str):
        return None
    try:
        return ast.parse(text)
    except _UNREADABLE:
        return None


def variable(tree: ast.AST | None, name: str) -> ast.expr | None:
    """What a variable is given outside of functions, at last; None: nothing is."""
    found = None
    for part in getattr(tree, "body", ()):
        if isinstance(part, ast.Assign):
            if any(isinstance(target, ast.Name) and target.id == name for target in part.targets):
                found = part.value
    return found


def values(node: ast.AST | None, name: str) -> Iterator[ast.expr]:
    """All that is given to a name, as a variable or an argument of `dict`, anywhere in a tree."""
    for part in () if node is None else ast.walk(node):
        if isinstance(part, ast.keyword) and part.arg == name:
            yield part.value
        elif isinstance(part, ast.Assign):
            if any(isinstance(target, ast.Name) and target.id == name for target in part.targets):
                yield part.value


def literals(node: ast.AST | None, name: str) -> list[Any]:
    """Those of the values that are plain Python, lists as tuples."""
    found = []
    for value in values(node, name):
        try:
            literal = ast.literal_eval(value)
        except _UNREADABLE:
            continue
        found.append(tuple(literal) if isinstance(literal, list) else literal)
    return found


def pairs(node: ast.AST | None, name: str) -> list[tuple[int, int]]:
    """Those of the literals that are sizes: two positive whole numbers."""
    return [
        literal
        for literal in literals(node, name)
        if isinstance(literal, tuple)
        and len(literal) == 2
        and all(isinstance(side, int) and side > 0 for side in literal)
    ]


def leaves(node: ast.AST | None, path: str = "") -> dict[str, Any]:
    """What nested dictionaries and lists of them hold, by paths such as `rcnn.0.sampler.num`.

    Lists of plain values are tuples; what is no plain value is `Unread`.
    """
    if node is None:
        return {}
    try:
        value = ast.literal_eval(node)
    except _UNREADABLE:
        value = Unread(ast.unparse(node))
    else:
        if not isinstance(value, dict) and not _holds_dicts(value):
            return {path: tuple(value) if isinstance(value, list) else value}
    parts: list[tuple[Any, ast.expr]] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        parts = [(keyword.arg, keyword.value) for keyword in node.keywords]
        parts += [(None, argument) for argument in node.args]
    elif isinstance(node, ast.Dict):
        parts = [
            (key.value if isinstance(key, ast.Constant) else None, value)
            for key, value in zip(node.keys, node.values, strict=True)
        ]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = list(enumerate(node.elts))
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, part in parts:
        # What has no key of its own (`**others`) is as if it were written out.
        below = path if key is None else f"{path}.{key}" if path else str(key)
        found |= leaves(part, below)
    return found


def _holds_dicts(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(x, dict) for x in value)


def normalisation(node: ast.AST | None) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation, where the config has one set of them, for pixels in 0..255."""
    fields = {}
    for key in ("mean", "std"):
        found = {
            literal
            for literal in literals(node, key)
            if isinstance(literal, tuple)
            and len(literal) == 3
            and all(isinstance(x, int | float) for x in literal)
        }
        if len(found) == 1:
            # Rounded, so that 123.675 is 0.485 again.
            fields[key] = tuple(round(x / 255, 8) for x in found.pop())
    return fields


def class_names_of(settings: Settings, num_classes: int) -> tuple[str, ...] | None:
    """The names of the classes that a file's `meta` or the settings beside it give, or None.

    Raises:
      InputError: they name another number of classes.
    """
    meta = settings.get(META, {})
    about = meta.get("dataset_meta")  # since mmengine
    names = None
    if isinstance(about, Mapping):
        names = about.get("classes", about.get("CLASSES"))
    if names is None:
        names = meta.get("CLASSES")
    if isinstance(names, str):  # mmdetection's files for one class
        names = [names]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        names = published.class_names_of(settings, num_classes)
    elif len(names) != num_classes:
        raise InputError(
            f"its `meta` names {len(names)} classes, but the weights are for {num_classes}"
        )
    # mmsegmentation's list of ADE20K's has a blank after one.
    return None if names is None else tuple(name.strip() for name in names)
