"""URLs and Hub repositories, from a server on the loopback interface."""

import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
from server import Page, serve
from small_files import gamma, load_small, state

from convnext_jax.convert.download import from_url
from convnext_jax.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_001)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAMED = f"/hub/weights-{DIGEST[:8]}.pth"


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_download_is_kept(tmp_path):
    with serve({NAMED: Page(CONTENT)}) as (url, requests):
        path = from_url(url + NAMED, tmp_path)
        assert path.read_bytes() == CONTENT and path.name == f"weights-{DIGEST[:8]}.pth"
        assert from_url(url + NAMED, tmp_path) == path
        assert len(requests) == 1 and files(tmp_path) == [path.name]


def test_several_that_want_the_same_file_download_it_once(tmp_path):
    with serve({NAMED: Page(CONTENT)}) as (url, requests):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda _: from_url(url + NAMED, tmp_path), range(8)))
        assert {path.read_bytes() == CONTENT for path in paths} == {True}
        assert len(requests) == 1 and len(files(tmp_path)) == 1


def test_a_broken_download_resumes(tmp_path):
    pages = {NAMED: Page(CONTENT, {"ETag": '"v1"'}, breaks=1)}
    with serve(pages) as (url, requests):
        assert from_url(url + NAMED, tmp_path).read_bytes() == CONTENT
        assert [r for _, _, r in requests if r] == [f"bytes={len(CONTENT) // 2}-"]
    assert len(files(tmp_path)) == 1


def test_an_interrupted_command_resumes_unless_the_file_changed(tmp_path):
    changed = CONTENT[::-1]
    pages = {"/weights.pth": Page(CONTENT, {"ETag": '"v1"'}, breaks=99)}
    with serve(pages) as (url, requests):
        with pytest.raises(InputError, match="did not arrive after 3 attempts"):
            from_url(url + "/weights.pth", tmp_path)
        (part,) = files(tmp_path)
        assert part.endswith(".part")  # Nothing has the final name.
        pages["/weights.pth"] = Page(changed, {"ETag": '"v2"'})
        assert from_url(url + "/weights.pth", tmp_path).read_bytes() == changed
        assert requests[-1][2] is None


@pytest.mark.parametrize("headers", [{}, {"ETag": '"v1"'}])
def test_a_wrong_hash_is_refused_and_not_kept(tmp_path, headers):
    with serve({NAMED: Page(CONTENT[:-1] + b"x", headers)}) as (url, _):
        with pytest.raises(InputError, match=f"does not begin with the {DIGEST[:8]}"):
            from_url(url + NAMED, tmp_path)
    assert files(tmp_path) == []


def test_unreachable_urls(tmp_path):
    with serve({}) as (url, _):
        with pytest.raises(InputError, match="404"):
            from_url(url + NAMED, tmp_path)
    with pytest.raises(InputError, match="did not arrive after 3 attempts"):
        from_url(url + NAMED, tmp_path)
    with pytest.raises(InputError, match="must end in a file's name"):
        from_url(url + "/", tmp_path)


def test_a_url_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = state()
    with serve({"/w.safetensors": Page(safetensors.torch.save(weights))}) as (url, _):
        converted = load_small(url + "/w.safetensors")
    np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])
    assert files(tmp_path / "convnext_jax") == ["w.safetensors"]


def hub_command(home, endpoint, repository, **environment):
    program = f"""
from convnext_jax.convert.loading import load
from convnext_jax.errors import exit_in_one_sentence
with exit_in_one_sentence():
    small = {{"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}}
    c = load("hf-hub:{repository}", model="convnext_tiny", overrides=small)
    print(c.licence, c.preprocessing.input_size, c.class_names, *c.sha256.values())
    print(float(c.params["stages"][0][0]["gamma"][0]))
"""
    # The Hub's client reads these when it is imported.
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def test_a_hub_id_is_loaded(tmp_path):
    weights = state()
    content = safetensors.torch.save(weights)
    digest = hashlib.sha256(content).hexdigest()
    config = {
        "architecture": "convnext_tiny",
        "label_names": list("abcde"),
        "pretrained_cfg": {"input_size": [3, 288, 288], "license": "cc0-1.0"},
    }
    commit = {"X-Repo-Commit": "0" * 40}
    base = "/timm/convnext_tiny.fb_in1k/resolve/main/"
    pages = {
        base + "model.safetensors": Page(content, {"ETag": f'"{digest}"', **commit}),
        base + "config.json": Page(json.dumps(config).encode(), {"ETag": '"c"', **commit}),
    }
    repository = "timm/convnext_tiny.fb_in1k"
    with serve(pages) as (url, _):
        done = hub_command(tmp_path / "home", url, repository)
        assert done.returncode == 0, done.stderr
        expected = f"cc0-1.0 288 ('a', 'b', 'c', 'd', 'e') {digest}"
        first, second = done.stdout.splitlines()
        assert first == expected
        assert float(second) == float(weights["stages.0.0.gamma"][0])
        # What came is not what was announced.
        pages[base + "model.safetensors"].content = content[:-1] + bytes([content[-1] ^ 1])
        damaged = hub_command(tmp_path / "other", url, repository)
        assert damaged.returncode == 2 and "is damaged: its SHA-256" in damaged.stderr
        absent = hub_command(tmp_path / "third", url, "nobody/nothing")
        assert absent.returncode == 2 and "has none of the files model.safetensors" in absent.stderr
    # The server is gone; the cache is not.
    cached = hub_command(tmp_path / "home", url, repository, HF_HUB_OFFLINE="1")
    assert cached.stdout.splitlines()[0] == expected
    offline = hub_command(tmp_path / "empty", url, repository, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and offline.stderr.count("\n") == 1
    for word in (repository, "model.safetensors", str(tmp_path / "empty"), url):
        assert word in offline.stderr
    # A server whose name nobody knows, as on a node without the Internet, is not asked again.
    direct = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "")
    direct |= {name.upper(): "" for name in direct}
    nowhere = "http://hub.invalid"
    for home, status in (("home", 0), ("empty", 2)):
        unknown = hub_command(tmp_path / home, nowhere, repository, **direct)
        assert unknown.returncode == status and unknown.stderr.count("\n") == (status > 0)
    assert f"the Hub at {nowhere} is switched off or cannot be reached" in unknown.stderr
