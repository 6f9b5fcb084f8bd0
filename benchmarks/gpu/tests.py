# SPDX-License-Identifier: Apache-2.0
"""Stage `tests`: the tests marked `gpu`, in a process of their own; their summary and failures go into the report."""

import re
import subprocess
import sys
from typing import Any

from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stages import ROOT
from benchmarks.gpu.work import Work
from speckv.errors import SpecKVError

NO_TESTS = 5
"""Pytest's exit status where nothing was collected."""


class GpuTestsError(SpecKVError, RuntimeError):
    """Tests failed, or none were found."""


def run(settings: Settings, work: Work) -> None:
    """Runs pytest."""
    work.piece("pytest", lambda: run_pytest(settings, work.left_s))


def run_pytest(settings: Settings, timeout_s: float) -> dict[str, Any]:
    """Runs the tests marked `gpu`, or in a rehearsal on a processor sees them skip themselves.

    Raises:
        GpuTestsError: with the summary and the failures.
        subprocess.TimeoutExpired: if they take longer than that.
    """
    command = ["-m", "pytest", "-m", "gpu", "-q", "-ra", "--color=no", "-p", "no:cacheprovider", *settings.tests]
    outcome = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    found = read_summary(outcome.stdout) | {
        "command": " ".join(["python", *command]),
        "exit_status": outcome.returncode,
    }
    if outcome.returncode == NO_TESTS:
        raise GpuTestsError(f"Expected tests marked gpu in {', '.join(settings.tests)}, found none.")
    if outcome.returncode:
        failures = "\n".join([found["summary"], *found["failures"]]) or outcome.stderr[-2000:]
        raise GpuTestsError(f"pytest ended with status {outcome.returncode}: {failures}")
    if settings.device.startswith("cuda") and " passed" not in found["summary"]:
        raise GpuTestsError(f"Expected some test to pass on {settings.device}, got: {found['summary']}")
    return found


def read_summary(text: str) -> dict[str, Any]:
    r"""Pytest's last line, its failures, and why tests were skipped.

    >>> read_summary("FAILED tests/a.py::b - assert 1 == 2\n1 failed, 2 passed in 0.10s\n")["summary"]
    '1 failed, 2 passed in 0.10s'
    """
    lines = text.splitlines()
    told = [line.strip("= ") for line in lines if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    return {
        "summary": told[-1] if told else "",
        "failures": [line for line in lines if line.startswith(("FAILED ", "ERROR "))],
        "skipped": [line for line in lines if line.startswith("SKIPPED ")],
    }
