"""Config files and their overrides, for the commands beside training."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from convnext_jax.arguments import Parser
from convnext_jax.config import Config, all_keys, resolve, unknown_key
from convnext_jax.errors import InputError


class ConfigFileParser(Parser):
    """Takes `--config`, and the config's overrides beside a command's own flags."""

    def __init__(self, **options: Any) -> None:
        """As `argparse.ArgumentParser`."""
        epilog = "The config's keys are overridden with --config.KEY=VALUE."
        super().__init__(epilog=epilog, **options)
        self.add_argument("--config", required=True, help="config file, or FILE:VARIANT")

    def parse_with_overrides(
        self, arguments: Sequence[str] | None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses a command line, None: that of this program.

        Returns:
          The arguments, and the overrides `--config.KEY=VALUE`.

        Raises:
          InputError: there are others.
        """
        parsed, rest = self.parse_known_args(arguments)
        return parsed, overrides_of(rest)


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """Takes what a command's own flags left over.

    Raises:
      InputError: it is not of the form `--config.KEY=VALUE`, or there is no such key.
    """
    for argument in arguments:
        key = argument.partition("=")[0].removeprefix("--config.")
        if not argument.startswith("--config."):
            raise InputError(f"`{argument}` is not a flag; overrides are `--config.KEY=VALUE`")
        if key not in all_keys():
            raise unknown_key(key)
        if "=" not in argument:
            raise InputError(f"`{argument}` must be written `--config.KEY=VALUE`")
    return list(arguments)


def load_config(file: str, overrides: Sequence[str]) -> Config:
    """Reads a config file as training does.

    Args:
      file: FILE or FILE:VARIANT.
      overrides: such as `--config.optim.lr=1e-3`.

    Raises:
      InputError: there is no such file, or what it holds cannot be used.
    """
    if not os.path.isfile(file.partition(":")[0]):
        raise InputError(f"`--config` (={file}) must be a config file, and there is none")
    values = flags.FlagValues()
    given = ["command", f"--config={file}", *overrides]
    # It looks for overrides in the whole command line, before the flags are parsed.
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given)
    try:
        values(given)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        raise cause or InputError(str(error).strip().splitlines()[-1]) from error
    return resolve(holder.value)
