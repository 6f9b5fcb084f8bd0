# SPDX-License-Identifier: Apache-2.0
"""Cores that a process may use: affinity mask and CPU quota."""

import os
from pathlib import Path

import pytest

from speckv import cores
from speckv.cores import usable_cores

V2 = "31 23 0:28 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "30 23 0:27 / {mount}/memory rw - cgroup cgroup rw,memory\n"
    "31 23 0:28 {root} {mount}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)


class Machine:
    """A process's view of its control groups, in a temporary folder."""

    def __init__(self, folder: Path, mounts: str, memberships: str, root: str = "/") -> None:
        self.mount = folder / "cgroup"
        (folder / "proc").mkdir()
        (folder / "proc" / "mountinfo").write_text(mounts.format(mount=self.mount, root=root))
        (folder / "proc" / "cgroup").write_text(memberships)

    def limit(self, group: str, **files: str) -> None:
        (self.mount / group).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.mount / group / name.replace("cpu_", "cpu.", 1)).write_text(content + "\n")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))  # noqa: ARG005
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cores, "_PROC", tmp_path / "proc")
    return tmp_path


def test_affinity_limits_the_cores(proc: Path) -> None:
    assert not (proc / "proc").exists()
    assert usable_cores() == 16


def test_all_cores_count_where_the_system_has_no_affinity(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proc
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("25000 100000", 1), ("9900000 100000", 16)],
)
def test_quota_of_version_2(proc: Path, cpu_max: str, expected: int) -> None:
    Machine(proc, V2, "0::/\n").limit("", cpu_max=cpu_max)
    assert usable_cores() == expected


def test_the_smallest_quota_of_a_group_and_its_parents_counts(proc: Path) -> None:
    machine = Machine(proc, V2, "0::/user/job\n")
    machine.limit("user/job", cpu_max="max 100000")
    machine.limit("user", cpu_max="300000 100000")
    assert usable_cores() == 3
    machine.limit("other", cpu_max="100000 100000")
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("quota", "period", "expected"), [("-1", "100000", 16), ("400000", "100000", 4), ("50000", "100000", 1)]
)
def test_quota_of_version_1(proc: Path, quota: str, period: str, expected: int) -> None:
    machine = Machine(proc, V1, "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    machine.limit("cpu/job", cpu_cfs_quota_us=quota, cpu_cfs_period_us=period)
    assert usable_cores() == expected


@pytest.mark.parametrize("root", ["/", "/docker/abc"])
def test_a_container_sees_its_own_group_at_the_mount_point(proc: Path, root: str) -> None:
    machine = Machine(proc, V1, "3:cpu,cpuacct:/docker/abc\n", root)
    machine.limit("cpu", cpu_cfs_quota_us="200000", cpu_cfs_period_us="100000")
    assert usable_cores() == 2


def test_unreadable_limits_are_none(proc: Path) -> None:
    machine = Machine(proc, V2, "0::/\nnonsense\n")
    machine.limit("", cpu_max="")
    assert usable_cores() == 16
    machine.limit("", cpu_max="100000 0")
    assert usable_cores() == 16
