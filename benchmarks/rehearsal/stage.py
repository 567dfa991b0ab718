"""Where and how large a rehearsal is, and what its parts read from a run's directory."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

from benchmarks.rehearsal import standins
from benchmarks.rehearsal.runs import Broken, Run

# Of a save of ConvNeXt-XL's state that is interrupted: so much must be on the disk.
_MIDDLE_BYTES = 5e8


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done; the tests do less.

    Attributes:
      datasets: by name.
      steps: of a run whose memory is watched.
      warmup: first steps, which are left out of a slope: shards are still being opened.
      batch: examples of a step of such a run.
      sample_seconds: between samples of its memory.
      late_batch: of the run that goes on late; a multiple of 128, or below.
      late_step: which one it goes on from.
      processes: at most so many join.
      evaluated: images of the datasets' held-out splits.
      xl: the model whose state is saved, as `SIZE` of configs/imagenet22k.py, with overrides.
      middle: bytes of an interrupted save that are on the disk when it is interrupted.
    """

    datasets: dict[str, standins.Records | standins.Folder]
    steps: int = 2000
    warmup: int = 500
    batch: int = 32
    sample_seconds: float = 0.5
    late_batch: int = 4096
    late_step: int = 90_000
    processes: int = 32
    evaluated: int = 50_000
    xl: tuple[str, ...] = ("configs/imagenet22k.py:xlarge", "--config.data.image_size=32")
    middle: float = _MIDDLE_BYTES


REAL = Size(
    {
        "imagenet1k": standins.IMAGENET_1K,
        "imagenet22k": standins.IMAGENET_22K,
        "folder": standins.FOLDER,
    }
)


class Stage:
    """A directory with the datasets, in which runs are tried."""

    def __init__(self, root: Path, size: Size = REAL) -> None:
        """Uses `root`, absolute, which may have datasets and compiled programs of an earlier time.

        Args:
          root: created.
          size: how much is done.
        """
        self.root = root
        self.size = size
        self.env = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
            # Most of the time would go to compiling, for few steps.
            "XLA_FLAGS": "--xla_backend_optimization_level=0"
            " --xla_llvm_disable_expensive_passes=true",
        }

    def workdir(self, name: str) -> Path:
        """A run's directory, new."""
        place = self.root / "runs" / name
        shutil.rmtree(place, ignore_errors=True)
        return place

    def train(
        self, workdir: Path, dataset: str, config: str, *overrides: str, count: int = 1
    ) -> Run:
        """Starts training on a dataset, which is written if need be."""
        written = self.size.datasets[dataset]
        standins.write(written, self.root)
        place = self.root / written.name if dataset == "folder" else self.root
        command = [sys.executable, "-m", "convnext_jax.main", "--config", config]
        command += ["--workdir", str(workdir), f"--config.data.dir={place}", *overrides]
        return Run(command, workdir, self.env, count=count)


def require(holds: bool, run: Run, what: str) -> None:
    """Raises `Broken` with `what` must be, and what the run said, unless `holds`."""
    if not holds:
        statuses = [process.returncode for process in run.processes]
        raise Broken(f"{what}; ended with {statuses}: {run.last_words()}")


def last_step(workdir: Path) -> int:
    """The last step that is recorded; 0 before the first."""
    try:
        with (workdir / "metrics.jsonl").open("rb") as file:
            file.seek(-min(file.seek(0, 2), 4096), 2)
            return json.loads(file.read().rstrip(b"\n").rpartition(b"\n")[2])["step"]
    except (FileNotFoundError, ValueError):  # not begun, or a line half written
        return 0


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are complete."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def bytes_below(folder: Path) -> int:
    """Size of all files of a folder, which may change meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total
