"""What follows an exit status: in the documents, in errors.py, in every script and manifest."""

import re

import pytest
from fake_commands import LAUNCH, ROOT
from job_policies import Pod, ends
from test_kubernetes import SHAPES, job_spec, manifest

from convnext_jax import errors

FINAL = {1, 2, 130}
# 134, 137, 143: a process killed by SIGABRT, SIGKILL, SIGTERM, as shells and containers say it.
AGAIN = {75, 76, 134, 137, 143}


def documented(page):
    """The table of exit statuses of a page: status -> the line's other cells."""
    found = {}
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"\d+(, \d+)*", cells[0]):
            found |= {int(status): cells[1:] for status in cells[0].split(", ")}
    return found


def test_the_documents_have_every_status_and_what_follows():
    table = documented("hardware.md")
    assert table == documented("reliability.md")
    assert set(table) == {0} | FINAL | AGAIN
    for status, (_, what) in table.items():
        assert ("start again" in what) == (status in AGAIN), status


def test_they_are_the_programs():
    assert {errors.INPUT_STATUS, errors.RUN_STATUS, errors.INTERRUPTED_STATUS} == FINAL
    assert {errors.PREEMPTED_STATUS, errors.LOST_STATUS} == {s for s in AGAIN if s < 128}


def test_the_scripts_start_again_after_the_same():
    for name in ("tpu_pod.sh", "slurm.sbatch"):
        text = (LAUNCH / name).read_text().replace("$PREEMPTED", "75")
        (listed,) = re.findall(r"^AGAIN=['\"](.*)['\"]$", text, re.M)
        assert {int(s) for s in listed.removesuffix("|none").split("|")} == AGAIN, name
    local = (LAUNCH / "local.sh").read_text()
    (lost,) = re.findall(r'^    "\$LOST" \| ([0-9 |]+)\)', local, re.M)
    assert {int(s) for s in lost.split("|")} | {75, 76} == AGAIN
    assert re.findall(r"^(?:PREEMPTED|LOST|INTERRUPTED)=(\d+)$", local, re.M) == [
        "75",
        "76",
        "130",
    ]


@pytest.mark.parametrize("kind", SHAPES)
def test_the_manifests_fail_after_the_same(kind):
    spec = job_spec(manifest(kind))
    (values,) = [
        r["onExitCodes"]["values"] for r in spec["podFailurePolicy"]["rules"] if "onExitCodes" in r
    ]
    assert set(values) == FINAL


def kills():
    """What the processes of each run of the kill table ended with, as a container says it."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| (SIG[^|]+) \| ([-\d, ]+) \| \d+ \|", text, re.M)
    assert rows
    return {tuple(sorted(int(s) % 256 for s in ended.split(", "))) for _, ended in rows}


def container(status):
    """The exit code of a container whose process ended so; -9 % 256 = 247 is signal 9."""
    return 128 + 256 - status if status > 200 else status


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_loss_starts_the_jobset_again(kind):
    jobset = manifest(kind)
    losses = {
        "preempted": [Pod(75), Pod(75)],
        "preempted, the node told so": [Pod(75, disrupted=True), Pod(75)],
        "killed, and the peer lost it": [Pod(137), Pod(76)],
        "killed, and JAX ended the peer": [Pod(137), Pod(134)],
        "the node is gone, the survivors lost it": [Pod(None, disrupted=True), Pod(76), Pod(134)],
        "its status comes late": [Pod(76), Pod(76)],
        "what it said while the node went away": [Pod(1, disrupted=True), Pod(76)],
        "killed while the node went away": [Pod(137, disrupted=True), Pod(76)],
        "told to go before it listened": [Pod(143), Pod(76)],
    }
    # Not Ctrl-C, which is final.
    losses |= {str(row): [Pod(container(s)) for s in row] for row in kills() if 130 not in row}
    for why, pods in losses.items():
        assert ends(jobset, pods) == "restarts", why
        for order in (pods, pods[::-1]):  # as the controller may see them
            assert ends(jobset, *([pod] for pod in order)) == "restarts", why
    assert ends(jobset, [Pod(76)], restarts=10**6) == "fails"


@pytest.mark.parametrize("kind", SHAPES)
def test_what_starting_again_would_not_mend_fails_the_jobset(kind):
    jobset = manifest(kind)
    for status in FINAL:
        assert ends(jobset, [Pod(status), Pod(status)]) == "fails"
        # Also where another was lost at the same time, as far as it is seen then.
        for other in (Pod(137, disrupted=True), Pod(None, disrupted=True), Pod(76), Pod(134)):
            assert ends(jobset, [other, Pod(status)]) == "fails"
            assert ends(jobset, [Pod(status)], [other]) == "fails"
