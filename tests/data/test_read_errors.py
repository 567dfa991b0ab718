"""Files that cannot be read for a while, or at all, with the real reader of array_record."""

import os
import resource
import threading
import types
from concurrent import futures

import pytest
from data.ilsvrc import encode
from data.synthetic import Noise, write_odd
from PIL import Image

from convnext_jax import retry
from convnext_jax.data.pieces import read_example
from convnext_jax.data.pipeline import train_batches
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError, RunError

RUN = {"global_batch": 8, "seed": 0, "start_step": 0, "num_steps": 1, "threads": 1}


@pytest.fixture
def shards(tmp_path):
    """Four files of two examples each."""
    image = encode(Image.new("RGB", (64, 64)), "rgb")
    examples = [{"image": image, "label": 1, "file_name": str(i)} for i in range(8)]
    write_odd(tmp_path, examples, num_shards=4)
    return sorted((tmp_path / "odd" / "1.0.0").glob("*array_record*"))


@pytest.fixture
def source(shards):
    return open_source("odd", "train", shards[0].parent.parent.parent)


@pytest.fixture
def waits(monkeypatch):
    """Short ones."""
    monkeypatch.setattr(retry, "WAITS_SECONDS", (0.1, 0.1, 0.1, 0.1))


@pytest.fixture
def away(shards):
    hidden = shards[0].with_name("away")
    shards[0].rename(hidden)
    return hidden


def test_a_file_that_comes_back_is_read(source, shards, away, waits):
    with futures.ThreadPoolExecutor() as pool:
        reading = [pool.submit(read_example, source, 0) for _ in range(4)]
        threading.Timer(0.15, away.rename, [shards[0]]).start()
        assert [future.result()[1] for future in reading] == [1] * 4


def test_a_file_that_stays_away_is_no_bad_image(source, away, waits):
    # Nothing is wrong with the images, so others do not stand for them, and 1 is not 2.
    with pytest.raises(RunError, match=r"again and again.*open\(\) failed: No such file"):
        list(train_batches(source, Noise(), **RUN, skip_bad=True))


def test_a_shortage_of_descriptors_passes(source, waits):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # all below are in use
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(InputError, match="Too many open files"):
            source[0]
        raised = threading.Timer(0.15, resource.setrlimit, [resource.RLIMIT_NOFILE, (soft, hard)])
        raised.start()
        assert read_example(source, 0)[1] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_reader_that_failed_once_is_replaced(source, shards):
    source[0]
    failed = source._records
    shards[0].rename(shards[0].with_name("away"))
    source._reopen(failed)
    with pytest.raises(InputError):
        source[0]
    shards[0].with_name("away").rename(shards[0])
    assert source[0][1] == 1 and source._records is not failed


def test_a_file_that_was_cut_short_is_damaged_for_good(source, shards, monkeypatch):
    sleep = types.SimpleNamespace(sleep=lambda seconds: pytest.fail("tried again"))
    monkeypatch.setattr(retry, "time", sleep)
    content = shards[0].read_bytes()
    for length in (len(content) // 2, 0):
        shards[0].write_bytes(content[:length])
        with pytest.raises(InputError, match=r"record 0 of dataset `odd`, split `train`"):
            read_example(open_source("odd", "train", shards[0].parents[2]), 0)
    # While it is open, too: the reader then gives records of nothing.
    shards[0].write_bytes(content)
    read_example(source, 0)
    os.truncate(shards[0], 100)
    with pytest.raises(InputError, match="is empty: its file must be whole"):
        read_example(source, 1)


@pytest.mark.parametrize(
    "error, passing",
    [
        (RuntimeError("pread() failed: Input/output error; reading x"), True),
        (RuntimeError("open() failed: Stale file handle; opening x"), True),
        (ValueError("UNAVAILABLE: try again"), True),
        (RuntimeError("open() failed: Permission denied; opening x"), False),
        (RuntimeError("read() failed: Is a directory; reading x"), False),
        (ValueError("what is UNAVAILABLE: nothing"), False),
        (FileNotFoundError(2, "No such file or directory"), False),
    ],
)
def test_what_passes(error, passing):
    assert retry.is_passing(error) == passing


@pytest.mark.parametrize(
    "message, passing",
    [
        ("UNAVAILABLE: no connection", True),
        ("UNKNOWN: Error reading: Input/output error", True),
        ("FAILED_PRECONDITION: Device or resource busy", True),
        ("RESOURCE_EXHAUSTED: Too many open files", True),
        ("RESOURCE_EXHAUSTED: Error writing: No space left on device", False),
        ("RESOURCE_EXHAUSTED: Disk quota exceeded", False),
        ("NOT_FOUND: No such file or directory", False),
        ("DATA_LOSS: a checksum is wrong", False),
        ("open() failed: Input/output error", True),
        ("a label must be in 0..9", False),
    ],
)
def test_what_libraries_say_may_pass(message, passing):
    assert retry.is_passing(ValueError(message)) == passing
