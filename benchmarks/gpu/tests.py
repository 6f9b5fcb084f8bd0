# SPDX-License-Identifier: Apache-2.0
"""Stage `tests`: the tests marked `gpu`, in a process of their own; their summary and failures go into the report."""

import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.work import Work
from speckv.errors import SpecKVError

NO_TESTS = 5
"""Pytest's exit status where nothing was collected."""
MARKED = re.compile(r"^(?:\s*@|pytestmark\b.*)pytest\.mark\.gpu\b", re.MULTILINE)
"""How a file marks a test, or all of its tests."""
TAIL = 1500
"""Characters of pytest's output that an error shows."""


class GpuTestsError(SpecKVError, RuntimeError):
    """Tests failed, took too long, or none were found."""


def run(settings: Settings, work: Work) -> None:
    """Runs pytest."""
    work.piece("pytest", lambda: run_pytest(settings, work.left_s))


def marked_files(places: Iterable[str]) -> list[str]:
    """Files below folders that mark tests as `gpu`, relative to the checkout; what is no folder stays as it is.

    Importing all test files takes longer than running those tests.
    """
    found = []
    for place in places:
        folder = ROOT / place
        if not folder.is_dir():
            found.append(place)
            continue
        paths = sorted(p for p in folder.rglob("test_*.py") if MARKED.search(p.read_text(encoding="utf-8")))
        found += [str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p) for p in paths]
    return found


def run_pytest(settings: Settings, timeout_s: float) -> dict[str, Any]:
    """Runs the tests marked `gpu`, or in a rehearsal on a processor sees them skip themselves.

    Raises:
        GpuTestsError: with the summary and the failures, or with the last lines where time ran out.
    """
    files = marked_files(settings.tests)
    if not files:
        raise GpuTestsError(f"Expected tests marked gpu in {', '.join(settings.tests)}, found none.")
    command = ["-m", "pytest", "-m", "gpu", "-v", "-ra", "--color=no", "-p", "no:cacheprovider", *files]
    try:
        outcome = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise GpuTestsError(
            f"Expected pytest to end within {timeout_s:.0f} s, it did not; its output ends with: {_tail(error.stdout)}"
        ) from None
    found = read_summary(outcome.stdout) | {
        "command": " ".join(["python", *command]),
        "exit_status": outcome.returncode,
    }
    if outcome.returncode == NO_TESTS:
        raise GpuTestsError(f"Expected tests marked gpu in {', '.join(files)}, found none.")
    if outcome.returncode:
        failures = "\n".join([found["summary"], *found["failures"]]).strip() or _tail(outcome.stdout + outcome.stderr)
        raise GpuTestsError(f"pytest ended with status {outcome.returncode}: {failures}")
    if settings.device.startswith("cuda") and " passed" not in found["summary"]:
        raise GpuTestsError(f"Expected some test to pass on {settings.device}, got: {found['summary']}")
    return found


def _tail(output: bytes | str | None) -> str:
    """The end of an output, which is bytes where time ran out."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-TAIL:].strip() or "nothing"


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
