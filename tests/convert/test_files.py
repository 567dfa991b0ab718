"""Files of every kind are read or refused with a sentence, and none of them executes anything."""

import json
import os
import pickle
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
from oracles import torch
from small_files import gamma, load_small, saved, state

from convnext_jax.convert.safetensors_files import read_safetensors, write_safetensors
from convnext_jax.errors import InputError


def refusal(path):
    with pytest.raises(InputError) as raised:
        load_small(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    return message


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_executes_code_is_refused(tmp_path, legacy):
    path, target = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"model": state(), "extra": Evil(target)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refusal(path)
    assert "executes code" in message and "system" in message and "nothing of it was run" in message
    assert not target.exists()
    path.write_bytes(pickle.dumps(Evil(target), protocol=2))
    assert "executes code" in refusal(path)
    assert not target.exists()


def test_legacy_files_are_read(tmp_path):
    weights = state()
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    converted = load_small(tmp_path / "old.pth")
    np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_truncated_pth(tmp_path, keep, legacy):
    path = tmp_path / "weights.pth"
    torch.save(state(), path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    message = refusal(path)
    assert "truncated" in message or "damaged" in message


def test_a_flipped_bit_in_a_pth(tmp_path):
    path = tmp_path / "weights.pth"
    weights = state()
    saved(path, weights)
    content = bytearray(path.read_bytes())
    place = content.index(weights["norm.bias"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "checksum" in refusal(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_empty_and_wrong_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    for content in (b"<!DOCTYPE html><html>Not found</html>", b"version https://git-lfs", b"PK"):
        path.write_bytes(content)
        message = refusal(path)
        assert "safetensors" in message and ("neither" in message or "truncated" in message)


def test_places_without_weights(tmp_path):
    assert "there is no file or folder" in refusal(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="for a repository on the Hub write hf-hub:timm/convnext"):
        load_small("timm/convnext_tiny.fb_in1k")
    assert "has none of the files model.safetensors" in refusal(tmp_path)


def with_header(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_header({"a": FLOAT}, b"1234567"), "truncated or damaged"),
        (with_header({"a": FLOAT}, b"123456789"), "truncated or damaged"),
        (with_header({"a": FLOAT}, b"12345678", length=1 << 62), "truncated"),
        (with_header(b"{not json"), "header cannot be read"),
        (with_header({"a": {**FLOAT, "dtype": "F99"}}, b"12345678"), "header cannot be read"),
        (with_header({"a": {**FLOAT, "shape": [3]}}, b"12345678"), "place of `a`"),
        (with_header({"a": {**FLOAT, "data_offsets": [-8, 0]}}), "place of `a`"),
        (with_header({"a": {**FLOAT, "shape": [-2]}}, b"12345678"), "place of `a`"),
        (with_header({"a": {**FLOAT, "shape": [-1, -2]}}, b"12345678"), "place of `a`"),
        (
            with_header({"a": FLOAT, "b": {**FLOAT, "data_offsets": [4, 12]}}, b"123456789012"),
            "`a` and `b` overlap",
        ),
        (with_header({"a": 3}), "header cannot be read"),
        (with_header({}), "holds no tensors"),
    ],
)
def test_damaged_safetensors(tmp_path, content, words):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_huge_header(tmp_path):
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)  # Takes no space.
    assert "more than the 100000000" in refusal(path)


def test_safetensors_agree_with_the_library(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).to(torch.bfloat16),
        "c": torch.tensor(2.5, dtype=torch.float16),
        "d": torch.zeros(0, 3),
        "e": torch.arange(3),
    }
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    read, metadata = read_safetensors(path)
    assert metadata == {"format": "pt"} and read.keys() == tensors.keys()
    assert read["b"].dtype == ml_dtypes.bfloat16
    for name, tensor in tensors.items():
        assert read[name].shape == tensor.shape
        np.testing.assert_array_equal(read[name].astype(np.float64), tensor.double())

    floats = {"x": np.float32([[1, 2], [3, 4]]).T, "y": np.zeros((0,), np.float32)}
    write_safetensors(path, {n: f.shape for n, f in floats.items()}, floats.__getitem__, {"k": "v"})
    again = safetensors.torch.load_file(path)
    for name, array in floats.items():
        np.testing.assert_array_equal(again[name], array)


def shards(folder, suffix, save):
    weights = state()
    names = sorted(weights)
    places = {name: f"part-{i % 2}{suffix}" for i, name in enumerate(names)}
    for file in set(places.values()):
        save({n: weights[n].contiguous() for n in names if places[n] == file}, folder / file)
    return weights, places


@pytest.mark.parametrize(
    ("index", "suffix", "save"),
    [
        ("model.safetensors.index.json", ".safetensors", safetensors.torch.save_file),
        ("pytorch_model.bin.index.json", ".bin", torch.save),
    ],
)
def test_shards(tmp_path, index, suffix, save):
    weights, places = shards(tmp_path, suffix, save)
    (tmp_path / index).write_text(json.dumps({"weight_map": places}))
    for location in (tmp_path, tmp_path / index):
        converted = load_small(location)
        assert len(converted.sha256) == 2
        np.testing.assert_array_equal(gamma(converted), weights["stages.0.0.gamma"])
    (tmp_path / index).write_text(json.dumps({"weight_map": {**places, "more": "part-0" + suffix}}))
    assert "`more`" in refusal(tmp_path / index)
    for away in ("part-7.bin", "../part-0.bin"):
        (tmp_path / index).write_text(json.dumps({"weight_map": {**places, "norm.bias": away}}))
        assert f"`{away}`, which is not there" in refusal(tmp_path / index)
    for nothing in (["part-0.bin"], 3):
        (tmp_path / index).write_text(json.dumps({"weight_map": {**places, "norm.bias": nothing}}))
        assert "must name the file of each tensor" in refusal(tmp_path / index)
    (tmp_path / index).write_text("[]")
    assert "holds a list" in refusal(tmp_path / index)


def test_safetensors_need_no_torch(tmp_path):
    weights = state()
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    saved(tmp_path / "w.pth", weights)
    program = f"""
import sys
sys.modules["torch"] = sys.modules["safetensors"] = None  # As if they were not installed.
from pathlib import Path
from convnext_jax.convert.loading import load
from convnext_jax.convert.write import export
from convnext_jax.errors import InputError
small = {{"depths": (1, 1, 1, 1), "dims": (4, 8, 12, 16)}}
converted = load({str(tmp_path / "w.safetensors")!r}, model="convnext_tiny", overrides=small)
back = Path({str(tmp_path / "back.safetensors")!r})
export(converted.params, "convnext_tiny", "timm", back, overrides=small)
for attempt in (
    lambda: load({str(tmp_path / "w.pth")!r}),
    lambda: export(converted.params, "convnext_tiny", "timm", Path("x.pth"), overrides=small),
):
    try:
        attempt()
    except InputError as error:
        assert "needs PyTorch" in str(error)
    else:
        raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(safetensors.torch.load_file(tmp_path / "back.safetensors")) == len(weights)
