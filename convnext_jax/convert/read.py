"""Finds the tensors in a file, a folder, a Hub repository or behind an URL."""

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convnext_jax import progress
from convnext_jax.convert import download
from convnext_jax.convert.safetensors_files import looks_like_safetensors, read_safetensors
from convnext_jax.convert.torch_files import read_pickle
from convnext_jax.errors import InputError

HUB = "hf-hub:"
# What mmcv's files say of themselves: the text of their config, names of classes, and more.
META = "meta"

# Under these names a checkpoint keeps the weights as trained, and their moving average.
_WEIGHTS = ("model", "state_dict")
_AVERAGES = ("model_ema", "state_dict_ema")
_CHUNK = 1 << 24  # bytes
# DistributedDataParallel and torch.compile put these before every name.
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
      name: as the user gave it.
      tensors: arrays by the names in the file; they may lie in the file, mapped into memory.
      parameters: `ema`: they are a moving average; `params`: they are what was averaged; `file`:
        there was one set, which does not say what it is.
      sha256: of each file with tensors, by its name, in hexadecimal.
      settings: JSON files beside the weights, by their names; and as `meta`, what mmcv's files
        have under that key.
    """

    name: str
    tensors: dict[str, np.ndarray]
    parameters: str
    sha256: dict[str, str]
    settings: dict[str, Mapping[str, Any]]


def read(location: str, ema: bool | None = None) -> Source:
    """Reads weights from wherever they are.

    Args:
      location: a `.pth`, `.pt`, `.bin` or `.safetensors` file (told apart by their content), a
        `.index.json` of shards, a folder as Hugging Face's `save_pretrained` writes it,
        `hf-hub:organisation/name` with an optional `@revision`, or a http(s) URL of a file.
      ema: of a training checkpoint, take the moving average of the weights, or (False) the weights
        themselves; None: the average where there is one.

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
    if "://" in location:
        from etils import epath  # only buckets need it

        # What is mapped from a file stays readable when the file is gone.
        with tempfile.TemporaryDirectory() as folder:
            return _read_path(location, epath.Path(location), Path(folder), ema)
    return _read_path(location, Path(location).expanduser(), None, ema)


def _read_path(name: str, path: Any, copies: Path | None, ema: bool | None) -> Source:
    """Reads a file or a folder.

    Args:
      name: as the user gave it.
      path: on this machine, or in a bucket.
      copies: where files in a bucket are copied to.
      ema: as in `read`.
    """

    def find_in(folder: Any, file: str) -> Path | None:
        found = folder / file
        if not found.is_file() or copies is None:
            return found if found.is_file() else None
        with found.open("rb") as remote, (copies / file).open("wb") as local:
            shutil.copyfileobj(remote, local, _CHUNK)
        return copies / file

    if path.is_dir():
        return _read_found(name, functools.partial(find_in, path), lambda: "", ema)
    beside = functools.partial(find_in, path.parent)
    file = beside(path.name)
    if file is None:
        hint = f"; for a repository on the Hub write {HUB}{name}"
        likely = name.count("/") == 1 and not path.suffix[1:].isalpha()
        raise InputError(f"there is no file or folder {name}{hint if likely else ''}")
    if file.name.endswith(".index.json"):
        return _read_sharded(name, file, beside, {}, ema)
    return _read_files(name, [file], {}, ema)


def _read_found(
    name: str, find: Callable[[str], Path | None], reason: Callable[[], str], ema: bool | None
) -> Source:
    """Reads a folder or repository whose files `find` gives; `reason` says why it gave none."""
    for file in download.WEIGHTS:
        path = find(file)
        if path is not None:
            break
    else:
        files = ", ".join(download.WEIGHTS)
        if reason():
            raise InputError(f"{name} cannot be read: {reason()}; it was asked for {files}")
        raise InputError(f"{name} has none of the files {files}")
    settings: dict[str, Mapping[str, Any]] = {}
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
    settings: dict[str, Mapping[str, Any]],
    ema: bool | None,
) -> Source:
    places = _read_json(index).get("weight_map")
    named = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    if not isinstance(places, dict) or not places or not named:
        raise InputError(
            f"{index} is no index of shards: its `weight_map` must name the file of each tensor"
        )
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
    name: str, paths: list[Path], settings: dict[str, Mapping[str, Any]], ema: bool | None
) -> Source:
    tensors: dict[str, np.ndarray] = {}
    parameters = "file"
    with contextlib.suppress(OSError):  # which reading explains
        # They are hashed, taken into arrays, and written.
        progress.expect(3 * sum(path.stat().st_size for path in paths))
    for path in paths:
        found, parameters, said = _read_file(path, ema)
        settings = settings | ({META: said} if said else {})
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise InputError(f"{path} repeats `{twice[0]}`, which another shard of {name} has")
        tensors |= found
    hashes = {path.name: download.sha256_of(path, progress.moved) for path in paths}
    return Source(name, _without_prefixes(tensors), parameters, hashes, settings)


def _read_file(
    path: Path, ema: bool | None
) -> tuple[dict[str, np.ndarray], str, Mapping[str, Any]]:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        if not looks_like_safetensors(path):
            content = read_pickle(path)
            said = content.get(META) if isinstance(content, Mapping) else None
            tensors, parameters = find_state_dict(content, ema, str(path))
            return tensors, parameters, said if isinstance(said, Mapping) else {}
        tensors, _ = read_safetensors(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    if ema:
        raise InputError(f"`--ema`: {path} holds one set of weights, and no moving average of them")
    return tensors, "file", {}


def find_state_dict(content: Any, ema: bool | None, name: str) -> tuple[dict[str, np.ndarray], str]:
    """Finds the weights in what a PyTorch file holds.

    The moving average is under `model_ema` or `state_dict_ema`, the weights themselves under
    `model` or `state_dict`; within that the same again, until there are tensors.

    Args:
      content: what was pickled, with arrays for tensors.
      ema: as in `read`.
      name: of the file, for messages.

    Returns:
      The tensors, and which they are: see `Source.parameters`.

    Raises:
      InputError: there are no weights, or not those that `ema` asks for; or what should be weights
        has other things among them.
    """
    parameters = "file"
    while True:
        if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
            raise InputError(f"{name} holds {_describe(content)}, not tensors by their names")
        found = [k for k in (*_AVERAGES, *_WEIGHTS) if isinstance(content.get(k), Mapping)]
        averages = [key for key in found if key in _AVERAGES]
        weights = [key for key in found if key in _WEIGHTS]
        if parameters != "file" or ema is False:
            found = weights or ([] if parameters == "file" else averages)
        elif ema:
            found = averages or weights
        if not found and any(isinstance(value, np.ndarray) for value in content.values()):
            break
        if not found:
            what = "no weights"
            if averages:
                what += " but their moving average (`--no-ema`)"
            raise InputError(
                f"{name} holds {what}, only {', '.join(map(str, content)) or 'an empty dict'}"
            )
        if parameters == "file":
            parameters = "ema" if found[0] in averages else "params" if averages else "file"
        content = content[found[0]]
    if ema and parameters != "ema":
        raise InputError(f"`--ema`: {name} holds one set of weights, and no moving average of them")
    others = [key for key, value in content.items() if not isinstance(value, np.ndarray)]
    if others:
        listed = ", ".join(f"`{key}` ({type(content[key]).__name__})" for key in others)
        raise InputError(f"{name} holds other things among its tensors: {listed}")
    return dict(content), parameters


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
