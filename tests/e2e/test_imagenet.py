"""What happens to a run on a prepared dataset with a damaged image."""

import re

import pytest
from data import ilsvrc
from data.synthetic import write_odd
from e2e import commands
from PIL import Image


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(workers, folders, tmp_path):
    good = ilsvrc.encode(Image.new("RGB", (40, 40)), "rgb")
    images = [good] * 5 + [good[: len(good) // 2]] + [good] * 2
    write_odd(
        tmp_path,
        [{"image": x, "label": i % 3, "file_name": f"{i}.jpg"} for i, x in enumerate(images)],
    )
    overrides = (
        f"--config.data.dir={tmp_path}",
        "--config.data.name=odd",
        "--config.data.eval_split=train",
        "--config.data.global_batch=8",
        f"--config.data.workers={workers}",
        "--config.num_steps=1",
    )
    command = commands.train_command(tmp_path / "run", *commands.TINY, *overrides)
    result = commands.run(command, commands.environment(*folders))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    # TFDS shuffles when it writes, so the record's number is not the image's.
    assert re.match(
        r"error: the image in record \d of dataset `odd`, split `train` \(5.jpg\) cannot be",
        line,
    )
