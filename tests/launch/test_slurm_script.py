"""launch/slurm.sbatch: its directives, and what it does in a job, with a stand-in for srun."""

import re

import pytest
from fake_commands import LAUNCH, environment, free_port, install, joined, records, run

SCRIPT = LAUNCH / "slurm.sbatch"
# What sbatch takes, from its manual (24.05): with a value, without, with or without.
VALUED = set(
    "account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment "
    "constraint container container-id core-spec cores-per-socket cpu-freq cpus-per-gpu "
    "cpus-per-task deadline delay-boot dependency distribution error exclude export export-file "
    "extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task "
    "gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type mail-user "
    "mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks "
    "ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition "
    "power prefer priority profile qos reservation signal sockets-per-node switches test-only "
    "thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid wait-all-nodes "
    "wckey wrap".split()
)
BARE = set(
    "contiguous hold ignore-pbs no-requeue overcommit oversubscribe parsable quiet requeue reboot "
    "spread-job stepmgr use-min-nodes verbose wait".split()
)
OPTIONAL = set("exclusive get-user-env nice no-kill oom-kill-step propagate".split())
VALUES = {
    "nodes": r"\d+(-\d+)?",
    "gpus-per-node": r"([a-z0-9_]+:)?\d+",
    "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d+(:\d\d(:\d\d)?)?|\d+-\d+(:\d\d(:\d\d)?)?",
    "signal": r"([RB]{1,2}:)?(TERM|USR1|USR2|INT|\d+)(@\d+)?",
    "open-mode": "append|truncate",
}
# Runs the command once for each task, as srun does on one node; its status is the highest.
SRUN = r"""
printf '%s\n' "$@" >"$STAND_IN/srun"
while [[ $1 == --* ]]; do
  case ${1%%=*} in
    --kill-on-bad-exit | --wait | --gpu-bind | --cpus-per-task) shift ;;
    *) echo "srun: unrecognized option '$1'" >&2; exit 1 ;;
  esac
done
export SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
  tasks+=($!)
done
highest=0
for task in "${!tasks[@]}"; do
  wait "${tasks[task]}" 2>/dev/null
  status=$?
  case $status in
    0) ;;
    134) echo "srun: error: localhost: task $task: Aborted (core dumped)" >&2 ;;
    137) echo "srun: error: localhost: task $task: Killed" >&2 ;;
    *) echo "srun: error: localhost: task $task: Exited with exit code $status" >&2 ;;
  esac
  if ((status > highest)); then highest=$status; fi
done
exit "$highest"
"""


def directives():
    """The script's directives, read as strictly as sbatch reads them."""
    found = {}
    for line in SCRIPT.read_text().splitlines():
        if line and not line.startswith("#"):
            break  # sbatch stops at the first command
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, line
            found[match[1]] = match[2]
    return found


def job(folder, plan, *arguments, scontrol='echo "$@" >>"$STAND_IN/scontrol"', **variables):
    install(folder, srun=SRUN, scontrol=scontrol)
    tasks = str(len(plan[0]))
    env = environment(
        folder,
        plan,
        SLURM_JOB_ID="4711",
        SLURM_NTASKS=tasks,
        SLURM_NTASKS_PER_NODE=tasks,
        SLURM_GPUS_ON_NODE=tasks,
        SLURM_CPUS_PER_TASK="6",
        **variables,
    )
    return run(["bash", SCRIPT, *arguments], env)


def test_sbatch_knows_every_directive_and_its_value():
    found = directives()
    assert found
    for name, value in found.items():
        assert name in VALUED | BARE | OPTIONAL, name
        assert (value is not None) == (name in VALUED) or name in OPTIONAL, name
        assert re.fullmatch(VALUES.get(name, ".*"), value or ""), f"{name}={value}"
    assert len(re.findall("^#SBATCH", SCRIPT.read_text(), re.M)) == len(found)


def test_directives_fit_each_other_and_the_program():
    found = directives()
    # A process per GPU is what JAX assumes where it finds Slurm.
    assert found["ntasks-per-node"] == found["gpus-per-node"]
    # To the tasks and not only the batch shell, with minutes left for a step and a save.
    signal, seconds = found["signal"].split("@")
    assert signal == "TERM" and int(seconds) >= 120
    assert "requeue" in found and found["open-mode"] == "append"


def test_tasks_get_the_arguments_and_srun_its_options(tmp_path):
    arguments = ["--config", "configs/imagenet1k.py:tiny", "--config.model.depths=(1, 1)"]
    assert job(tmp_path, [[0, 0]], *arguments).returncode == 0
    assert [r["arguments"] for r in records(tmp_path)] == [arguments] * 2
    given = (tmp_path / "srun").read_text().splitlines()
    assert given[: given.index("python")] == [
        "--kill-on-bad-exit=0",
        "--wait=300",
        "--gpu-bind=none",
        "--cpus-per-task=6",
    ]


@pytest.mark.parametrize(
    "statuses, expected, requeued",
    [
        ([0, 0], 0, False),
        ([75, 75], 75, True),
        ([76, 137], 137, True),  # killed, and the one that lost it
        ([134, 76], 134, True),
        ([1, 1], 1, False),
        ([1, 76], 1, False),  # srun says 76
        ([75, 2], 2, False),
        ([134, 2, 1], 2, False),  # srun says 134
        ([75, 3], 3, False),
    ],
)
def test_only_what_can_go_on_goes_back_into_the_queue(tmp_path, statuses, expected, requeued):
    result = job(tmp_path, [statuses])
    assert result.returncode == expected
    called = tmp_path / "scontrol"
    assert called.exists() == requeued
    if requeued:
        assert called.read_text() == "requeue 4711\n"
    assert "process 0, attempt 0" in result.stdout
    assert ("srun: error: localhost: task 0: " in result.stderr) == (statuses[0] != 0)


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path):
    script = """
echo "$@" >>"$STAND_IN/scontrol"
(($(wc -l <"$STAND_IN/scontrol") > 2)) || { echo "Socket timed out" >&2; exit 1; }
"""
    result = job(tmp_path, [[75]], scontrol=script, POLL_SECONDS="0")
    assert result.returncode == 75
    assert (tmp_path / "scontrol").read_text() == "requeue 4711\n" * 3


def test_restarts_are_limited(tmp_path):
    restarts = {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"}
    assert job(tmp_path, [[75]], **restarts).returncode == 75
    assert not (tmp_path / "scontrol").exists()


def test_tasks_must_be_as_many_as_gpus(tmp_path):
    install(tmp_path, srun=SRUN)
    env = environment(tmp_path, [[0]], SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")
    result = run(["bash", SCRIPT], env)
    assert result.returncode == 2
    assert result.stderr == (
        "error: --ntasks-per-node (=1) must be the number of GPUs of a node (=4)\n"
    )


def test_the_tasks_meet_without_being_told_how(tmp_path):
    """JAX finds Slurm by its variables; only the port is given here, as it must be a free one."""
    result = job(tmp_path, [["join", "join"]], JAX_COORDINATOR_PORT=free_port())
    assert result.returncode == 0, result.stderr
    assert joined(tmp_path, 2) == [{"index": i, "seen": [0, 1]} for i in range(2)]
