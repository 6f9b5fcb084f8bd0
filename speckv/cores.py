# SPDX-License-Identifier: Apache-2.0
"""The number of processor cores that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cores() -> int:
    """Cores in the affinity mask, unlike `os.cpu_count`, at most the CPU quota of the control groups, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    allowed = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    for folder in _control_groups():
        try:
            quota = _quota(folder)
        except (OSError, ValueError, ZeroDivisionError):  # no limit is set, or the file cannot be read
            continue
        if quota > 0:
            yield quota


def _quota(folder: Path) -> float:
    """`cpu.max` in version 2, two files in version 1, where -1 means no limit."""
    if (folder / "cpu.max").is_file():
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return -1.0 if quota == "max" else int(quota) / int(period)
    quota_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
    return quota_us / int((folder / "cpu.cfs_period_us").read_text(encoding="utf-8"))


def _control_groups() -> Iterator[Path]:
    """In a container the group's path may be that on the host; the mount point then is the container's own group."""
    groups = _memberships()
    for root, mount, controllers in _mounts():
        for controller, group in groups.items():
            if controller not in controllers:
                continue
            inside = Path(group).relative_to(root) if Path(group).is_relative_to(root) else Path(group.lstrip("/"))
            yield from (mount / part for part in (inside, *inside.parents))


def _memberships() -> dict[str, str]:
    groups: dict[str, str] = {}
    for line in _lines(_PROC / "cgroup"):
        controllers, _, group = line.partition(":")[2].partition(":")
        groups |= {name: group for name in controllers.split(",") if name in ("", "cpu")}
    return groups


def _mounts() -> Iterator[tuple[str, Path, set[str]]]:
    for line in _lines(_PROC / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        yield fields[3], Path(fields[4]), {""} if kind[0] == "cgroup2" else set(kind[-1].split(","))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
