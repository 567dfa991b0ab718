"""Finds the tensors in a file, a folder, a Hub repository or behind an URL."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax.convert import download
from convnext_jax.convert.safetensors_files import looks_like_safetensors, read_safetensors
from convnext_jax.convert.torch_files import read_pickle
from convnext_jax.errors import InputError

HUB = "hf-hub:"

# Under these names a checkpoint keeps the weights as trained, and their moving average.
_WEIGHTS = ("model", "state_dict")
_AVERAGES = ("model_ema", "state_dict_ema")
# DistributedDataParallel and torch.compile put these before every name.
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
      name: as the user gave it.
      tensors: arrays by the names in the file; they may lie in the file, mapped into memory.
      sha256: of each file with tensors, by its name, in hexadecimal.
      settings: JSON files beside the weights, by their names.
    """

    name: str
    tensors: dict[str, np.ndarray]
    sha256: dict[str, str]
    settings: dict[str, dict[str, Any]]


def read(location: str, ema: bool = False) -> Source:
    """Reads weights from wherever they are.

    Args:
      location: a `.pth`, `.pt`, `.bin` or `.safetensors` file (told apart by their content), a
        `.index.json` of shards, a folder as Hugging Face's `save_pretrained` writes it,
        `hf-hub:organisation/name` with an optional `@revision`, or a http(s) URL of a file.
      ema: of a training checkpoint, take the moving average of the weights; the default is the
        weights themselves (or the average, where a file has only that).

    Raises:
      InputError: there is nothing there, it cannot be read, or it holds no weights; one sentence
        says which.
    """
    if location.startswith(HUB):
        repository, _, revision = location.removeprefix(HUB).partition("@")
        hub = download.HubRepository(repository, revision if revision else None)
        return _read_found(location, hub.find, lambda: hub.unreachable, ema)
    if location.startswith(("http://", "https://")):
        return _read_files(location, [download.from_url(location)], {}, ema)
    path = Path(location).expanduser()
    if path.is_dir():

        def find_in_folder(file: str) -> Path | None:
            return path / file if (path / file).is_file() else None

        return _read_found(location, find_in_folder, lambda: "", ema)
    if not path.is_file():
        hint = f"; for a repository on the Hub write {HUB}{location}"
        likely = location.count("/") == 1 and not path.suffix[1:].isalpha()
        raise InputError(f"there is no file or folder {location}{hint if likely else ''}")
    if path.name.endswith(".index.json"):
        return _read_sharded(location, path, lambda file: path.parent / file, {}, ema)
    return _read_files(location, [path], {}, ema)


def _read_found(
    name: str, find: Callable[[str], Path | None], reason: Callable[[], str], ema: bool
) -> Source:
    """Reads a folder or repository whose files `find` gives; `reason` says why it gave none."""
    for file in download.WEIGHTS:
        path = find(file)
        if path is not None:
            break
    else:
        why = f": {reason()}" if reason() else ""
        raise InputError(f"{name} has none of the files {', '.join(download.WEIGHTS)}{why}")
    settings = {}
    for file in download.SETTINGS:
        found = find(file)
        if found is not None:
            settings[file] = _read_json(found)
    if path.name.endswith(".index.json"):
        return _read_sharded(name, path, find, settings, ema)
    return _read_files(name, [path], settings, ema)


def _read_sharded(
    name: str,
    index: Path,
    find: Callable[[str], Path | None],
    settings: dict[str, dict[str, Any]],
    ema: bool,
) -> Source:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} is no index of shards: it has no `weight_map`")
    paths = []
    for file in sorted(set(places.values())):
        path = None if Path(file).name != file else find(file)
        if path is None or not path.is_file():
            raise InputError(f"{index} names the shard `{file}`, which is not there")
        paths.append(path)
    source = _read_files(name, paths, settings, ema)
    different = sorted(set(places) ^ set(source.tensors))
    if different:
        raise InputError(
            f"{index} and its shards do not hold the same tensors; they differ in"
            f" {', '.join(f'`{tensor}`' for tensor in different)}"
        )
    return source


def _read_files(
    name: str, paths: list[Path], settings: dict[str, dict[str, Any]], ema: bool
) -> Source:
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        found = _read_file(path, ema)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise InputError(f"{path} repeats `{twice[0]}`, which another shard of {name} has")
        tensors |= found
    hashes = {path.name: download.sha256_of(path) for path in paths}
    return Source(name, _without_prefixes(tensors), hashes, settings)


def _read_file(path: Path, ema: bool) -> dict[str, np.ndarray]:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        if not looks_like_safetensors(path):
            return find_state_dict(read_pickle(path), ema, str(path))
        tensors, _ = read_safetensors(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    if ema:
        raise InputError(f"`--ema`: {path} holds one set of weights, and no moving average of them")
    return tensors


def find_state_dict(content: Any, ema: bool, name: str) -> dict[str, np.ndarray]:
    """Finds the weights in what a PyTorch file holds.

    The weights are the first of `model` and `state_dict` there is, else `model_ema` or
    `state_dict_ema`, which `ema` chooses; within that the same again, until there are tensors.

    Args:
      content: what was pickled, with arrays for tensors.
      ema: as in `read`.
      name: of the file, for messages.

    Raises:
      InputError: there are no weights, or no average of them though `ema` asks for it; or what
        should be weights has other things among them.
    """
    averaged = False
    while True:
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            raise InputError(f"{name} holds {_describe(content)}, not tensors by their names")
        keys = _AVERAGES if ema and not averaged else (*_WEIGHTS, *_AVERAGES)
        key = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
        if key is None and any(isinstance(value, np.ndarray) for value in content.values()):
            break
        if key is None:
            what = "no moving average of weights" if ema and not averaged else "no weights"
            raise InputError(
                f"{name} holds {what}, only {', '.join(map(str, content)) or 'an empty dict'}"
            )
        averaged = averaged or key in _AVERAGES
        content = content[key]
    if ema and not averaged:
        raise InputError(f"`--ema`: {name} holds one set of weights, and no moving average of them")
    others = [key for key, value in content.items() if not isinstance(value, np.ndarray)]
    if others:
        listed = ", ".join(f"`{key}` ({type(content[key]).__name__})" for key in others)
        raise InputError(f"{name} holds other things among its tensors: {listed}")
    return dict(content)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes a wrapper's prefix from all names, if all have it; again, if wrappers are nested."""
    prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
    if prefix is None:
        return tensors
    return _without_prefixes({name.removeprefix(prefix): t for name, t in tensors.items()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {_describe(content)}, not an object")
    return content


def _describe(content: Any) -> str:
    if isinstance(content, np.ndarray):
        return f"one tensor of shape {content.shape}"
    return f"a {type(content).__name__}"
