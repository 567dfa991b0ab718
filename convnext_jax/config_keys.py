"""Every key of the configuration in words, from the comments in config.py.

`python -m convnext_jax.config_keys` prints docs/configuration.md.
"""

import dataclasses
import inspect
import re
import typing
from typing import NamedTuple

from convnext_jax import config

_INTRODUCTION = """\
# Configuration

Every key of a config, its type, its default and what it is. Configs set their own values; the
command line overrides single keys: `--config.optim.lr=1e-3`. `python -m convnext_jax.main --help`
prints the same list. `make docs` writes this page from `convnext_jax/config.py`;
`config_ranges.py` beside it says what values are refused.
"""


class Key(NamedTuple):
    """A key of the configuration.

    Attributes:
      name: such as `optim.lr`.
      kind: its type, such as `float` or `int | None`.
      default: as Python writes it.
      words: what it is.
    """

    name: str
    kind: str
    default: str
    words: str


def sections() -> dict[str, tuple[str, list[Key]]]:
    """What the sections are, and their keys, by name; that of the keys without a section is ""."""
    found = {"": _section(config.Config, "")}
    for name, hint in typing.get_type_hints(config.Config).items():
        if dataclasses.is_dataclass(hint):
            found[name] = _section(typing.cast(type, hint), f"{name}.")
    return found


def _section(section: type, prefix: str) -> tuple[str, list[Key]]:
    comments = _comments(inspect.getsource(section))
    keys = [
        Key(f"{prefix}{field.name}", _kind(field.type), repr(field.default), comments[field.name])
        for field in dataclasses.fields(section)
        if not dataclasses.is_dataclass(field.type)
    ]
    return (inspect.getdoc(section) or "").splitlines()[0], keys


def _kind(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _comments(source: str) -> dict[str, str]:
    """The comment of each field: above its line or behind it."""
    found, above = {}, ""
    for line in source.splitlines():
        if match := re.match(r"    # (.*)", line):
            above = f"{above} {match[1]}".strip()
        elif match := re.match(r"    (\w+): [^#]*?(?:  # (.*))?$", line):
            found[match[1]] = " ".join(filter(None, [above, match[2]]))
            above = ""
    return found


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for name, (words, keys) in sections().items():
        parts.append(f"## {f'`{name}`' if name else 'The run'}\n\n{words}\n")
        rows = [
            f"| `{key.name}` | {key.kind.replace('|', 'or')} | `{key.default}` | {key.words} |"
            for key in keys
        ]
        parts.append("\n".join(["| key | type | default | |", "|---|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def listing() -> str:
    """The keys as a terminal shows them."""
    lines = []
    for name, (words, keys) in sections().items():
        lines.append(f"\n{name or 'run'}: {words}")
        for key in keys:
            lines.append(
                f"  --config.{key.name}={key.default.strip(chr(39))}  {key.words}".rstrip()
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
