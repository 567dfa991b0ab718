"""A bar where a terminal watches what takes its time, and nothing anywhere else."""

import os
import pty
import subprocess
import sys
import threading

import pytest

PROGRAM = """
import sys, time
from convnext_jax import progress
progress._PATIENCE_SECONDS = float(sys.argv[1])
with progress.progress_bar("counting", 6, "images", beside_output=sys.argv[2] == "beside") as bar:
    for i in range(6):
        print(i, flush=True)
        time.sleep(0.15)
        bar.update()
"""


def watched(seconds, beside, *, output_too):
    """Runs the program with stderr on a terminal, which does not know its size; what it showed."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read():
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seconds), beside],
        stdout=theirs if output_too else subprocess.DEVNULL,
        stderr=theirs,
        timeout=60,
    )
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert done.returncode == 0
    return shown.decode()


def test_a_terminal_sees_how_far_it_is_and_then_nothing():
    shown = watched(0.1, "", output_too=False)
    frames = [frame for frame in shown.split("\r") if "counting" in frame]
    assert frames and all(len(frame) <= 80 for frame in frames)
    assert any("/6 [00:00<" in frame and "images" in frame for frame in frames), frames
    assert shown.split("\r")[-1].strip() == "" and "\n" not in shown


def test_what_is_soon_over_shows_nothing():
    assert watched(3, "", output_too=False) == ""


@pytest.mark.parametrize("output_too", [True, False])
def test_output_on_the_same_terminal_is_progress_enough(output_too):
    assert ("counting" in watched(0.1, "beside", output_too=output_too)) == (not output_too)


def test_nobody_watches():
    command = [sys.executable, "-c", PROGRAM, "0.1", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
