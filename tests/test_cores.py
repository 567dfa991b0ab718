"""How many cores a process may use, by what control groups of both versions say."""

import os

import pytest

from convnext_jax.processes import usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "groups, limits, expected",
    [
        # A container of version 2, as Docker and Kubernetes make them.
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, min(2, CORES)),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
        ("0::/\n", {"cpu.max": "900000000 100000\n"}, CORES),
        # The limit is on a group above, as for a unit of systemd or a job of Slurm.
        ("0::/a.slice/b.scope\n", {"a.slice/cpu.max": "100000 100000\n"}, 1),
        # Version 1, in a container that sees the host's names.
        (
            "5:memory:/d/x\n3:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        (
            "3:cpu,cpuacct:/docker/x\n",
            {"cpu/docker/x/cpu.cfs_quota_us": "-1\n", "cpu/docker/x/cpu.cfs_period_us": "100000\n"},
            CORES,
        ),
        ("", {}, CORES),
    ],
)
def test_quotas(tmp_path, groups, limits, expected):
    named = {f"sys/fs/cgroup/{name}": content for name, content in limits.items()}
    for name, content in {"proc/self/cgroup": groups, **named}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == expected


def test_no_control_groups(tmp_path):
    assert usable_cores(tmp_path) == CORES
