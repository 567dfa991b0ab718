"""More files than a shell's usual limit on open ones, with the real reader and the real limit."""

import os
import resource
import subprocess
import sys

# A run of its own process: limits cannot be raised again. Each step prints a word.
PROGRAM = """
import resource, sys
from PIL import Image
from data.ilsvrc import encode
from data.synthetic import write_odd
from convnext_jax import builders
from convnext_jax.config import from_dict
from convnext_jax.data.sources import open_source
from convnext_jax.errors import InputError
from convnext_jax.training.stopwatch import Stopwatch

image = encode(Image.new("RGB", (8, 8)), "rgb")
examples = [{"image": image, "label": 1, "file_name": str(i)} for i in range(1100)]
write_odd(sys.argv[1], examples, num_shards=1100)  # a record each
model = {"name": "convnext_atto", "depths": (1, 1, 1, 1), "dims": (4, 4, 4, 4)}
data = {"name": "odd", "dir": sys.argv[1], "eval_split": "train[:1%]", "global_batch": 8}
config = from_dict({"model": model, "data": data | {"image_size": 32}, "num_epochs": 30})
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
builders.build_run(config, Stopwatch())
source = open_source("odd", "train", sys.argv[1])
assert [source[i][1] for i in range(1100)] == [1] * 1100
print("read")
resource.setrlimit(resource.RLIMIT_NOFILE, (1300, 1300))
try:
    builders.build_run(config, Stopwatch())
except InputError as error:
    print(error)
"""


def test_a_thousand_files_under_a_limit_of_a_thousand(tmp_path):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard >= 1400, "the machine's hard limit is too low for this test"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([tests, os.path.dirname(tests)])
    env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # 1,100 shards of training, 11 of evaluation, and the reserve of 256.
    assert done.stdout.splitlines()[-2:] == [
        "read",
        "the hard limit on open files (`ulimit -Hn`, =1300) must be at least 1367, for 1111 files"
        " of data and 0 decoding workers",
    ]
