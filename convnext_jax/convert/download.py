"""Weights from the Hugging Face Hub and from URLs, kept in a cache and checked."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from convnext_jax.errors import InputError

# Names of weight files, the first that is there counts; of settings, all that are there.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
SETTINGS = ("config.json", "preprocessor_config.json")

_ATTEMPTS = 3
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without an answer


def sha256_of(path: Path, moved: Callable[[int], object] = lambda size: None) -> str:
    """The SHA-256 of a file, in hexadecimal; `moved` is told of bytes that were read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            moved(len(chunk))
    return digest.hexdigest()


def hash_in_name(name: str) -> str | None:
    """The first digits of the SHA-256 that a file's name ends with (torch's hubs do), or None."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found else None


class HubRepository:
    """The files of a repository, from the Hub's cache or else from the Hub.

    Attributes:
      unreachable: why the Hub was not asked for what is not in the cache; empty while it was.
    """

    def __init__(self, repository: str, revision: str | None = None) -> None:
        """Asks nothing yet.

        Args:
          repository: `organisation/name`.
          revision: a branch, tag or commit; None: the main branch.
        """
        self.repository = repository
        self.revision = revision
        self.unreachable = ""
        self._reachable: bool | None = None  # not known yet

    def find(self, file: str) -> Path | None:
        """Returns the path in the cache of a file, which is downloaded if it is not there.

        Args:
          file: its name in the repository.

        Returns:
          The path; None if the repository has no such file, or the Hub cannot be reached and the
          cache has none.

        Raises:
          InputError: there is no such repository, or the file did not arrive, or does not have the
            hash that the Hub announced.
        """
        name = f"hf-hub:{self.repository}"
        try:
            import huggingface_hub as hub
            from huggingface_hub import constants, errors
        except ImportError as error:
            raise InputError(
                f"{name} needs huggingface_hub (`pip install huggingface_hub`)"
            ) from error
        if self._reachable is None:
            self._reachable = _can_be_reached(constants.ENDPOINT)
        try:
            found = hub.hf_hub_download(
                self.repository,
                file,
                revision=self.revision,
                local_files_only=not self._reachable,
            )
        except errors.LocalEntryNotFoundError:
            self._reachable = False  # Asked in vain once is enough.
            self.unreachable = (
                f"the Hub at {constants.ENDPOINT} is switched off or cannot be reached, and"
                f" there is no such file in the cache {constants.HF_HUB_CACHE}"
            )
            return None
        except errors.EntryNotFoundError:
            return None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise InputError(
                f"{name} is not on {constants.ENDPOINT}, or needs a login (revision:"
                f" {self.revision or 'main'})"
            ) from error
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            raise InputError(f"{name}: `{file}` did not arrive: {_line(error)}") from error
        path = Path(found)
        expected = path.resolve().name  # The cache names large files by their SHA-256.
        if re.fullmatch(r"[0-9a-f]{64}", expected) and sha256_of(path) != expected:
            raise InputError(
                f"{path} is damaged: its SHA-256 is not the {expected} that the Hub announced;"
                f" delete {path.resolve()} and try again"
            )
        return path


def _can_be_reached(endpoint: str) -> bool:
    """Whether a server's name is known; where not, the Hub's library tries for half a minute."""
    if urllib.request.getproxies():
        return True  # They know more names than this machine.
    for pause in (1, 2, 0):
        try:
            socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, None)
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                return False
            time.sleep(pause)  # What fails in passing deserves another chance.
        else:
            return True
    return False


def from_url(url: str, directory: Path | None = None) -> Path:
    """Returns the path of a URL's file, downloaded if it is not in the cache.

    The file has its name only when it is complete and, where the name ends in a hash as in torch's
    hubs, has that hash. An interrupted download goes on where it stopped, as long as the server
    still has the same file.

    Args:
      url: begins with http:// or https://.
      directory: the cache; None: `convnext_jax` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
      InputError: the file did not arrive, or has another hash.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise InputError(f"the URL {url} must end in a file's name")
    if directory is None:
        home = os.environ.get("XDG_CACHE_HOME")
        directory = (Path(home) if home else Path.home() / ".cache") / "convnext_jax"
    path = directory / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # The processes of a run want the same file at the same time.
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            _download(url, path)
    finally:
        os.close(folder)
    return path


def _download(url: str, path: Path) -> None:
    """Downloads a URL's file to `path`, as `from_url` says."""
    for attempt in range(_ATTEMPTS):
        try:
            part = _fetch(url, path)
            break
        except urllib.error.HTTPError as error:
            raise InputError(f"{url} did not arrive: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1:
                raise InputError(
                    f"{url} did not arrive after {_ATTEMPTS} attempts: {_line(error)}; what came"
                    f" is kept in {path.parent}, and the same command goes on from there"
                ) from error
    found, expected = sha256_of(part), hash_in_name(path.name)
    if expected is not None and not found.startswith(expected):
        part.unlink()
        raise InputError(
            f"{url} is damaged or was replaced: its SHA-256 {found} does not begin with the"
            f" {expected} of its name"
        )
    part.replace(path)


def _fetch(url: str, path: Path) -> Path:
    """Downloads, or goes on downloading, a URL into a file beside `path`."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
        length = int(response.headers.get("Content-Length", -1))
        # The server's mark of this version of the file; without one nothing can be resumed.
        mark = response.headers.get("ETag")
        version = hashlib.sha256(f"{mark} {length}".encode()).hexdigest()[:16]
        part = path.with_name(f"{path.name}.{version}.part")
        have = part.stat().st_size if mark and part.exists() else 0
        if not have:
            _save(response, part, "wb")
    if 0 < have < length:
        request = urllib.request.Request(
            url, headers={"Range": f"bytes={have}-", "If-Range": str(mark)}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            # 206: the rest comes; otherwise everything does.
            _save(response, part, "ab" if response.status == 206 else "wb")
    size = part.stat().st_size
    if length >= 0 and size != length:
        if size > length:
            part.unlink()
        raise OSError(f"{size} of {length} bytes came")
    return part


def _save(response: http.client.HTTPResponse, part: Path, mode: str) -> None:
    with part.open(mode) as file:
        while chunk := response.read(_CHUNK):
            file.write(chunk)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
