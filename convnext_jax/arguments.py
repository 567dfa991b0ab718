"""Command lines as all commands read them."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


class Parser(argparse.ArgumentParser):
    """Takes `--data-dir` for `--data_dir`, and no abbreviations of flags."""

    def __init__(self, **options: Any) -> None:
        """As `argparse.ArgumentParser`."""
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As `argparse.ArgumentParser`."""
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._spelled(given), namespace)

    def _spelled(self, arguments: list[str]) -> list[str]:
        found = []
        for number, argument in enumerate(arguments):
            if argument == "--":
                return found + arguments[number:]
            name, equals, value = argument.partition("=")
            other = f"--{name[2:].replace('-', '_')}"
            known = name.startswith("--") and other in self._option_string_actions
            found.append(f"{other}{equals}{value}" if known else argument)
        return found
