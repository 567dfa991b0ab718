"""launch/tpu_pod.sh and tpu_worker.sh: the commands as text, and the whole of it on two hosts."""

import concurrent.futures
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from fake_commands import HERE, LAUNCH, ROOT, environment, install, records, run

GOLDEN = ROOT / "tests" / "golden" / "launch"
SLICE = ("--name", "pod", "--zone", "us-east5-b")
PROGRAM = ("--config", "configs/imagenet1k.py:tiny", "--config.model.depths=(1, 1)", "it's")
TYPE = ("--type", "v6e-8")
ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]

# The hosts' Python, which is asked for uv; and uv, which makes an environment.
PYTHON3 = r"""
if [[ $* == "-m pip install --quiet --user uv=="* ]]; then
  mkdir -p "$HOME/.local/bin"
  cp "$STAND_IN/bin/fake-uv" "$HOME/.local/bin/uv"
  exit
fi
echo "python3: unexpected: $*" >&2
exit 1
"""
UV = r"""
echo "$FAKE_WORKER: $*" >>"$STAND_IN/uv"
if [[ $1 == venv ]]; then
  mkdir -p "${!#}/bin"
  ln -sf "$STAND_IN/bin/python" "${!#}/bin/python"
fi
"""


def pod(folder, command, *options, plan=(), lives=(), program=PROGRAM, **variables):
    """Runs the script with stand-ins for gcloud, for what hosts have, and for the program."""
    gcloud = shlex.join([sys.executable, "-I", "-S", str(HERE / "fake_gcloud.py")])
    log = '>>"$STAND_IN/tools"'
    install(
        folder,
        **{"gcloud": f'exec {gcloud} "$@"', "python3": PYTHON3, "fake-uv": UV},
        **{"sudo": f'echo "sudo $*" {log}', "gcsfuse": f'echo "gcsfuse $*" {log}'},
        mountpoint="exit 1",
    )
    if lives:
        (folder / "lives.json").write_text(json.dumps(lives))
    settings = {"FAKE_GCLOUD": str(folder), "POLL_SECONDS": "0"} | variables
    env = environment(folder, plan, **settings)
    rest = ["--", *program] if program else []
    return run([LAUNCH / "tpu_pod.sh", command, *SLICE, *options, *rest], env)


def calls(folder):
    """What gcloud was asked for, without the polling."""
    lines = (folder / "calls.txt").read_text().splitlines()
    lines = [line.replace("convnext_jax/launch/tpu_worker.sh ", "") for line in lines]
    return [" ".join(line.split()[:3]) for line in lines if "describe" not in line]


STARTED = ["tpu-vm ssh start", "tpu-vm ssh follow", "tpu-vm ssh status"]
MADE = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh mkdir"]


@pytest.mark.parametrize(
    "name, command, options, program",
    [
        ("train", "train", (*TYPE, "--spot", "--delete", "--data-bucket", "gs://my-data"), PROGRAM),
        ("run", "run", ("--project", "my-project"), PROGRAM),
        ("create", "create", (*TYPE, "--version", "my-image"), ()),
        ("stop", "stop", (), ()),
        ("delete", "delete", ("--project", "my-project"), ()),
    ],
)
def test_the_dry_run_is_the_golden(tmp_path, name, command, options, program):
    """To rewrite a golden: delete it and run this test twice."""
    result = pod(tmp_path, command, *options, "--dry-run", program=program)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "calls.txt").exists()  # nothing was run
    printed = result.stdout.replace(str(ROOT), "CHECKOUT")
    path = GOLDEN / f"tpu_pod_{name}.txt"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(printed)
        pytest.fail(f"{path} was missing; it is written now, review it")
    assert printed == path.read_text()


def test_printed_commands_are_the_ones_that_run(tmp_path):
    """A shell that reads the printed lines does the same as the script without --dry-run."""
    dry, real = tmp_path / "dry", tmp_path / "real"
    for folder in (dry, real):
        folder.mkdir()
    printed = pod(dry, "train", *TYPE, "--delete", "--dry-run", lives=[["ACTIVE"]]).stdout
    env = environment(dry, [[0, 0]], FAKE_GCLOUD=str(dry), POLL_SECONDS="0")
    result = run(["bash", "-euc", printed], env, cwd=dry)
    assert result.returncode == 0, result.stderr
    done = pod(real, "train", *TYPE, "--delete", plan=[[0, 0]], lives=[["ACTIVE"]])
    assert done.returncode == 0, done.stderr
    assert calls(dry) == calls(real) == [*MADE, *STARTED, "queued-resources delete"]
    assert [r["arguments"] for r in records(dry)] == [list(PROGRAM)] * 2


def test_train_goes_from_nothing_to_a_finished_run(tmp_path):
    result = pod(tmp_path, "train", *TYPE, plan=[[0, 0]], lives=[ACTIVE])
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == [*MADE, *STARTED]
    assert [r["arguments"] for r in records(tmp_path)] == [list(PROGRAM)] * 2
    assert "process 0, attempt 0" in result.stdout
    assert re.findall("^# pod: (.*)$", result.stderr, re.M) == ["not there", *ACTIVE]
    installed = (tmp_path / "uv").read_text()
    for worker in range(2):
        assert f"{worker}: venv --quiet --allow-existing --python 3.12 .venv\n" in installed
        assert f"{worker}: pip install --quiet -r requirements.txt jax[tpu]\n" in installed
        assert (tmp_path / f"worker{worker}" / "convnext_jax" / "convnext_jax" / "main.py").exists()
        assert not list((tmp_path / f"worker{worker}").rglob("__pycache__"))


def test_a_preempted_run_is_started_again_and_one_that_failed_is_not(tmp_path):
    plan = [[75, 75], [75, 75], [1, 1], [0, 0]]
    result = pod(tmp_path, "train", *TYPE, "--delete", plan=plan, lives=[["ACTIVE"]])
    assert result.returncode == 1
    # Two more starts without a new installation; and the slice stays, with its logs.
    assert calls(tmp_path) == [*MADE, *STARTED * 3]


@pytest.mark.parametrize(
    "statuses, expected",
    [
        ([2, 2], 2),
        ([75, 1], 1),  # one that failed is not hidden by one that saved
        ([134, 2], 2),
        ([1, 76], 1),
        ([130, 130], 130),
        ([137, 76], 0),  # started again
        ([134, 76], 0),
        ([75, 0], 0),
    ],
)
def test_of_several_statuses_what_starting_again_would_not_mend_counts(
    tmp_path, statuses, expected
):
    result = pod(tmp_path, "train", *TYPE, plan=[statuses, [0, 0]], lives=[["ACTIVE"]])
    assert result.returncode == expected
    assert len(records(tmp_path)) == (2 if expected else 4)


def test_restarts_are_limited(tmp_path):
    options = {"plan": [[75, 75]] * 3, "lives": [["ACTIVE"]], "MAX_RESTARTS": "1"}
    result = pod(tmp_path, "train", *TYPE, **options)
    assert result.returncode == 75
    assert len(records(tmp_path)) == 4


def test_a_slice_that_was_taken_away_is_created_again(tmp_path):
    lives = [["ACTIVE", "SUSPENDING", "SUSPENDED"], ACTIVE]
    result = pod(tmp_path, "train", *TYPE, "--spot", plan=[[75, 75], [0, 0]], lives=lives)
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == [*MADE, *STARTED, "queued-resources delete", *MADE, *STARTED]


def test_a_run_that_was_cut_off_is_started_again(tmp_path):
    """As after a reboot: nothing runs, and nothing says how it ended."""
    plan = [["cut", "cut"], [0, 0]]
    result = pod(tmp_path, "train", *TYPE, plan=plan, lives=[["ACTIVE"]])
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == [*MADE, *STARTED * 2]


def test_hosts_that_do_not_answer_for_a_while_are_asked_again(tmp_path):
    options = {"plan": [[0, 0]], "lives": [["ACTIVE"]]}
    (tmp_path / "unreachable").write_text("2")
    result = pod(tmp_path, "train", *TYPE, **options)
    assert result.returncode == 0, result.stderr
    assert calls(tmp_path) == [*MADE[:2], "tpu-vm scp", "tpu-vm scp", MADE[2], *STARTED]


def made(folder):
    """Every call of gcloud by its number, the polling too."""
    return [" ".join(line.split()[:2]) for line in (folder / "calls.txt").read_text().splitlines()]


def one_failure(folder, number, how):
    """A whole `train` with a preemption, where gcloud's call of that number fails in passing."""
    folder.mkdir()
    (folder / "failures.json").write_text(json.dumps({number: how}))
    # Some hosts may have begun another attempt than others where a start had to be repeated.
    plan = [[75, 75]] + [[0, 0]] * 4
    result = pod(folder, "train", *TYPE, "--delete", plan=plan, lives=[["CREATING", "ACTIVE"]] * 2)
    return result, made(folder)


@pytest.mark.parametrize("how", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_no_single_failure_of_gcloud_ends_a_run_or_costs_a_slice(tmp_path, how):
    """Each call in turn fails once, before it did anything or after, or reaches one host alone."""
    calm, order = one_failure(tmp_path / "calm", -1, how)
    assert calm.returncode == 0, calm.stderr
    assert order.count("queued-resources describe") >= 6 and "tpu-vm describe" in order

    def attempt(number):
        on_hosts = how == "after" and order[number] in ("tpu-vm scp", "tpu-vm ssh")
        mode = "half" if on_hosts else how
        return one_failure(tmp_path / str(number), number, mode)

    # They wait more than they compute.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, range(len(order))))
    for number, (result, called) in enumerate(outcomes):
        told = (number, order[number], called, result.stderr)
        assert result.returncode == 0, told
        assert max(i for i, c in enumerate(called) if c == "tpu-vm ssh") < called.index(
            "queued-resources delete"
        ), told
        folder = tmp_path / str(number)
        # At the end, as --delete says, and only then.
        assert (folder / "deleted.txt").read_text() == "ACTIVE\n", told
        again = order[number] == "queued-resources create"
        assert called.count("queued-resources create") == 1 + again, told


def test_a_slice_that_could_not_be_seen_for_a_while_is_not_deleted(tmp_path):
    """As when the laptop's connection goes: nothing answers, then everything does again."""
    calm, order = one_failure(tmp_path / "calm", -1, "before")
    assert calm.returncode == 0, calm.stderr
    first = order.index("tpu-vm ssh", order.index("tpu-vm ssh") + 2)  # the first `follow`
    folder = tmp_path / "gone"
    folder.mkdir()
    failures = dict.fromkeys(range(first, first + 8), "before")
    (folder / "failures.json").write_text(json.dumps(failures))
    result = pod(folder, "train", *TYPE, plan=[[75, 75], [0, 0]], lives=[ACTIVE, ACTIVE])
    assert result.returncode == 0, result.stderr
    assert "gcloud does not answer; asking again: ERROR: (gcloud.compute.tpus." in result.stderr
    assert "queued-resources delete" not in made(folder)
    assert made(folder).count("queued-resources create") == 1


def test_a_failure_that_does_not_pass_is_told(tmp_path):
    (tmp_path / "failures.json").write_text(json.dumps({"all": "before"}))
    result = pod(tmp_path, "train", *TYPE, lives=[ACTIVE])
    assert result.returncode == 1
    assert "error: gcloud does not say whether pod is there: ERROR: (gcloud." in result.stderr
    assert made(tmp_path) == ["queued-resources describe"] * 3


def test_a_slice_that_came_back_is_not_deleted(tmp_path):
    """What was seen SUSPENDED and is ACTIVE when asked again, right before it would be deleted."""
    lives = [["ACTIVE", "SUSPENDED", "ACTIVE"]]
    result = pod(tmp_path, "train", *TYPE, plan=[[75, 75], [0, 0]], lives=lives)
    assert result.returncode == 0, result.stderr
    assert "queued-resources delete" not in made(tmp_path)


def test_a_request_that_cannot_be_served_is_told(tmp_path):
    lives = [["WAITING_FOR_RESOURCES", "FAILED"]] * 2
    result = pod(tmp_path, "train", *TYPE, lives=lives)
    assert result.returncode == 1
    assert "error: the slice (=pod) cannot be had\n" in result.stderr


def test_several_slices_are_one_run(tmp_path):
    """Two slices of two hosts: made by one request, every command on all four hosts."""
    options = (*TYPE, "--slices", "2", "--reserved", "--service-account", "a@b", "--delete")
    result = pod(tmp_path, "train", *options, plan=[[75] * 4, [0] * 4], lives=[ACTIVE])
    assert result.returncode == 0, result.stderr
    assert sorted(r["process"] for r in records(tmp_path)) == sorted([*range(4)] * 2)
    done = calls(tmp_path)
    assert done[:3] == ["queued-resources create", "tpu-vm scp", "tpu-vm scp"]
    assert [done.count(f"tpu-vm ssh {c}") for c in ("mkdir", "start", "status")] == [2, 4, 4]
    assert done[-1] == "queued-resources delete"
    dry = pod(tmp_path, "train", *options, "--dry-run").stdout
    assert "create pod --node-count=2 --node-prefix=pod --zone=us-east5-b --quiet" in dry
    assert "--reserved --service-account=a@b\n" in dry
    assert "tpu-vm ssh pod-0 " in dry and "tpu-vm ssh pod-1 " in dry


def wait_for_records(folder, count):
    deadline = time.monotonic() + 60
    while len(records(folder)) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def test_run_needs_a_slice_and_follows_a_run_that_goes_on(tmp_path):
    missing = pod(tmp_path, "run")
    assert missing.returncode == 1
    assert "error: the slice (=pod) is not there; `train` creates it\n" in missing.stderr

    plan = [["term", "term"]]
    assert pod(tmp_path, "create", *TYPE, lives=[["ACTIVE"]], program=()).returncode == 0
    uninstalled = pod(tmp_path, "follow", program=())
    assert uninstalled.returncode == 127  # the hosts have no checkout yet
    assert pod(tmp_path, "install", program=()).returncode == 0
    early = pod(tmp_path, "status", program=())
    assert early.stdout.split() == ["none", "none"]
    # What `run` does first; then its terminal is lost.
    env = environment(tmp_path, plan, FAKE_GCLOUD=str(tmp_path), POLL_SECONDS="0")
    command = [str(LAUNCH / "tpu_pod.sh"), "run", *SLICE, "--", "a"]
    with subprocess.Popen(command, env=env, start_new_session=True) as terminal:
        deadline = time.monotonic() + 60
        # The second time; the first was on hosts without a checkout.
        while calls(tmp_path).count(STARTED[1]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(terminal.pid, signal.SIGKILL)
    wait_for_records(tmp_path, 2)
    assert pod(tmp_path, "status", plan=plan, program=()).stdout.split() == ["running", "running"]

    began = time.monotonic()
    stopped = pod(tmp_path, "stop", plan=plan, program=())
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert time.monotonic() - began < 30  # the stand-in would wait a minute without the signal
    assert pod(tmp_path, "status", plan=plan, program=()).stdout.split() == ["75", "75"]
    assert len(records(tmp_path)) == 2


def test_the_bucket_is_mounted_before_the_start(tmp_path):
    options = ("--data-bucket", "gs://my-data")
    result = pod(tmp_path, "train", *TYPE, *options, plan=[[0, 0]], lives=[["ACTIVE"]])
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "tools").read_text().splitlines()
    mounting = "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=-1 -o ro my-data /mnt/data"
    assert lines.count(mounting) == 2
    assert lines.count("sudo mkdir -p /mnt/data") == 2


def test_data_is_copied_before_the_start_and_the_copy_is_kept(tmp_path):
    """gcloud on the hosts is another than on the user's machine, with the bucket."""
    source = "gs://my-data/tfds/imagenet2012/5.1.0"
    options = ("--copy-data", source, "--copy-to", str(tmp_path / "memory"))
    plan = [[75, 75], [0, 0]]
    result = pod(tmp_path, "train", *TYPE, *options, plan=plan, lives=[["ACTIVE"]])
    assert result.returncode == 0, result.stderr
    copied = tmp_path / "memory" / "imagenet2012" / "5.1.0"
    assert (copied / "record").read_text() == "1234567890"
    # Once by each host that found none; the hosts share this disk here.
    assert result.stdout.count(f"{copied} is complete") >= 2
    assert [r["arguments"] for r in records(tmp_path)] == [list(PROGRAM)] * 4


def test_hosts_without_room_for_the_data_end_it(tmp_path):
    options = ("--copy-data", "gs://my-data/huge/1.0.0", "--copy-to", str(tmp_path / "memory"))
    result = pod(tmp_path, "train", *TYPE, *options, plan=[], lives=[["ACTIVE"]])
    assert result.returncode == 2
    assert "error: the copy of gs://my-data/huge/1.0.0 needs 100000000 GB, and " in result.stderr
    assert not records(tmp_path)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("launch",), "the command (=launch) must be train, create, install, run, follow,"),
        (("run", "--zone", "z", "--", "a"), "`--name` must be given"),
        (("run", "--name", "n", "--", "a"), "`--zone` must be given"),
        (("run", "--name", "--zone", "z"), "`--name` must have a value"),
        (("run", *SLICE), "arguments of convnext_jax.main must be given after --"),
        (("train", *SLICE, "--", "a"), "`--type` must be given"),
        (("create", *SLICE, "--type", "v9-8"), "`--version` must be given for the type (=v9-8)"),
        (("run", *SLICE, "--slices", "two"), "`--slices` (=two) must be a positive whole number"),
        (("run", *SLICE, "--config", "a"), "`--config` is not an option; what convnext_jax.main"),
    ],
)
def test_options_that_cannot_be_used(tmp_path, arguments, sentence):
    result = run([LAUNCH / "tpu_pod.sh", *arguments], environment(tmp_path, []))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {sentence}")
