"""Trains, or goes on training: `python -m convnext_jax.main --config FILE --workdir DIR`.

The same command on the same workdir continues the run. Exit status: 0 done (also if it was done
before); 1 the run had to stop; 2 the input cannot be used; 75 preempted, after saving; 76 lost
what may come back, such as another process; 130 interrupted by Ctrl-C, after saving. All but the
first come with one sentence on stderr.
"""

from convnext_jax import command, interrupts

if __name__ == "__main__":  # before the imports, which take seconds
    command.begin()

import functools
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# TensorFlow, which clu's TensorBoard writer imports, would greet with log lines about itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from convnext_jax import builders, processes
from convnext_jax.checkpointing.shared import require_shared
from convnext_jax.checkpointing.steps import completed_steps
from convnext_jax.config import Config, all_keys, resolve, unknown_key
from convnext_jax.constants import EXAMPLES_FILE, REPORT_FILE
from convnext_jax.errors import (
    LOST_STATUS,
    RUN_STATUS,
    InputError,
    Interrupted,
    Lost,
    Preempted,
    exit_in_one_sentence,
)
from convnext_jax.models.spec import ModelDescription
from convnext_jax.report import run as report
from convnext_jax.retry import is_passing
from convnext_jax.training import loop, summary
from convnext_jax.training.mirror import Mirror
from convnext_jax.training.state import TrainState
from convnext_jax.training.stopwatch import Stopwatch

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, or FILE:VARIANT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; continued if it has one.")


def run(config: Config, place: str, preemption: processes.Preemption, stopwatch: Stopwatch) -> None:
    """Trains to the end and leaves `summary.json` and `curves.png`, unless that is done already."""
    directory = builders.checkpoint_dir(config, builders.workdir_path(place))
    job = builders.build_run(config, stopwatch, directory)
    workdir = builders.prepare_workdir(place)
    mirror = Mirror(workdir, directory, active=processes.is_first())
    start, finished = 0, False
    # Process 0 may be the only one that sees its workdir.
    if processes.is_first():
        mirror.fetch()
        start = max(completed_steps(directory), default=0)
        finished = summary.is_finished(workdir, job.total_steps) and start >= job.total_steps
    finished = bool(processes.from_first(np.bool_(finished)))
    state = None
    if not finished:
        builders.require_writable("checkpoint.dir", directory)
        require_shared("checkpoint.dir", directory)
        state = loop.train(job, workdir, directory, preemption, mirror)
    if not processes.is_first():
        return
    if finished:
        results = summary.read_summary(workdir)
        print(f"this run was finished before, at step {start}; nothing to do")
    else:
        facts = builders.facts(config, job)
        facts |= {"resumed_from_step": start, "seconds": stopwatch.seconds}
        results = summary.write_summary(workdir, facts, job.metric)
        summary.write_curves(workdir, f"{results['model']} on {results['dataset']}", job.metric)
        mirror.close()
        # Of several processes none has all parameters.
        if job.page is not None and state is not None and jax.process_count() == 1:
            try:
                job.page(workdir / EXAMPLES_FILE, *state.candidates()[results["evaluated"]])
            except OSError as error:  # the run itself is complete
                print(f"warning: {EXAMPLES_FILE} was not written: {error}", file=sys.stderr)
        if job.look is not None:
            _write_report(job, workdir, state, results["evaluated"])
    print(summary.final_line(results, workdir, job.metric))


def _write_report(job: loop.Run, workdir: Path, state: TrainState | None, evaluated: str) -> None:
    """Writes `report.html`; one that cannot be written does not spoil the run, which is over."""
    look, spec = job.look, ModelDescription.from_json(job.description).spec
    # Of several processes none has all parameters: `python -m convnext_jax.report` reads them.
    if jax.process_count() == 1 and look is not None and state is not None:
        sections = functools.partial(look, *state.candidates()[evaluated])
    else:
        sections = None
    try:
        for problem in report.write([workdir], workdir / REPORT_FILE, sections, spec):
            print(f"warning: {REPORT_FILE}: {problem}", file=sys.stderr)
    except Exception as error:  # a device or a disk that is full; the run is over, and complete
        print(f"warning: {REPORT_FILE} was not written: {error}", file=sys.stderr)


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache directory; JAX_COMPILATION_CACHE_DIR overrides.

    The next start of the same run, after a preemption too, then compiles next to nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{root}/convnext_jax/programs")


_HELP = """\
usage: python -m convnext_jax.main --config FILE[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]

Train, or go on training: the same command on the same workdir continues the run.

  --config FILE[:VARIANT]  a config file, such as configs/digits.py or configs/imagenet1k.py:tiny
  --workdir DIR            of the run, here or in a bucket (gs://...); continued if it has one
  --config.KEY=VALUE       overrides a key of the config file

Exit status: 0 done; 1 the run had to stop; 2 the input cannot be used; 75 preempted, after saving;
76 lost what may come back; 130 interrupted, after saving.

Keys, with the defaults that a config file changes:"""


def _print_help() -> None:
    from convnext_jax import config_keys  # only here

    print(f"{_HELP}\n{config_keys.listing()}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line.

    Raises:
      SystemExit: after one sentence, for a flag, a config file or a config key that does not exist.
    """
    if {"-h", "-?", "--help", "-help"} & set(argv[1:]):
        _print_help()
        sys.exit(0)
    with exit_in_one_sentence():
        # Before absl sees them, whose answer to these mistakes would be a traceback.
        for argument, following in itertools.pairwise([*argv[1:], ""]):
            name, equals, value = argument.lstrip("-").partition("=")
            key = name.removeprefix("config.")
            if argument.startswith("-") and key != name and key not in all_keys():
                raise unknown_key(key)
            if argument.startswith("--") and (meant := _keys_called(name)):
                raise InputError(
                    f"`--{name}` is not a flag; did you mean"
                    f" {' or '.join(f'`--config.{key}`' for key in meant)}?"
                )
            if argument.startswith("-") and name == "config":
                _check_file(value if equals else following)
        try:
            rest = flags.FLAGS(argv)
        except (flags.Error, InputError, AttributeError, KeyError) as error:
            raise _input_error_behind(error) from error
        for name in ("config", "workdir"):
            if not flags.FLAGS[name].present:
                raise InputError(f"`--{name}` must be given")
        if len(rest) > 1:
            raise InputError(f"`{rest[1]}` is not a flag; overrides are `--config.KEY=VALUE`")
        return rest


def _keys_called(name: str) -> list[str]:
    """The config's keys of that name, with or without their section."""
    return [key for key in all_keys() if name in (key, key.rpartition(".")[2])]


def _check_file(config: str) -> None:
    if not os.path.isfile(config.partition(":")[0]):
        raise InputError(f"`--config` (={config}) must be a config file, and there is none")


def _input_error_behind(error: BaseException) -> InputError:
    """The InputError that a config file raised, or one with what absl or ml_collections said."""
    found = InputError(str(error).strip().splitlines()[-1])
    cause: BaseException | None = error
    while cause is not None:
        # ml_collections raises the config's own error again, with the traceback in its message.
        found = cause if isinstance(cause, InputError) else found
        cause = cause.__cause__ or cause.__context__
    return found


def main(argv: Sequence[str]) -> None:
    """Runs after the flags are parsed."""
    del argv
    stopwatch = Stopwatch(command.BEGAN)
    stopwatch.lap("importing")
    # Libraries log how they work and what they raise; a run reports itself.
    logging.set_verbosity(logging.FATAL)
    try:
        with exit_in_one_sentence():
            config = resolve(_CONFIG.value)
            if config.compilation_cache:
                keep_compiled_programs()
            processes.join()
            stopwatch.lap("joining the other processes")
            preemption = processes.Preemption()
            try:
                with processes.ending_together():
                    try:
                        run(config, str(_WORKDIR.value), preemption, stopwatch)
                    except OSError as error:
                        if not is_passing(error):
                            raise
                        raise Lost(f"a file system does not answer: {error}") from error
            except Preempted as error:
                if preemption.interrupted:
                    raise Interrupted(str(error)) from error
                raise
    except SystemExit as end:
        if end.code in (RUN_STATUS, LOST_STATUS):
            # After a save that failed, threads of Orbax wait for parts of it that do not come, and
            # the interpreter would wait for them.
            interrupts.leave_at_once(end.code)
        raise


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
