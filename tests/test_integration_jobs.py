# SPDX-License-Identifier: Apache-2.0
"""What `make integrations` does with its jobs, on jobs that take no time; the real ones need packages and minutes."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / ".ci" / "integrations").iterdir())

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def run(folder: Path, jobs: dict[str, str]) -> tuple[int, list[str]]:
    paths = []
    for name, body in jobs.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        paths.append(str(path))
    environment = {**os.environ, "LOGS": str(folder / "logs")}
    ran = subprocess.run(
        [ROOT / ".ci" / "all_integrations", *paths], env=environment, capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout.partition("::: summary\n")[2].splitlines()


def test_one_failing_job_hides_no_other(tmp_path: Path) -> None:
    status, summary = run(
        tmp_path,
        {
            "broken": "echo '=== 1 failed, 8 passed in 1.20s ==='; exit 3",
            "good": "echo 'notice: no weights'; echo '=== 9 passed, 2 skipped in 2.50s ==='; echo done",
            "missing": "nothing-of-this-name",
        },
    )
    assert status == 1
    # Alignment and seconds aside.
    assert [re.sub(r" +", " ", re.sub(r"\d+ s ", "S ", line)).strip() for line in summary] == [
        "FAILED broken S 1 failed, 8 passed in 1.20s",
        f"exit status 3, log in {tmp_path}/logs/broken.log",
        "passed good S 9 passed, 2 skipped in 2.50s",
        "notice: no weights",
        "FAILED missing S no test ran",
        f"exit status 127, log in {tmp_path}/logs/missing.log",
        "::: 1 of 3 jobs passed",
    ]
    assert "9 passed" in (tmp_path / "logs" / "good.log").read_text(encoding="utf-8")


def test_all_green_is_green(tmp_path: Path) -> None:
    green = "echo '=== 9 passed in 63.10s (0:01:03) ==='"
    status, summary = run(tmp_path, {"a": green, "b": green})
    assert status == 0
    assert summary[-1] == "::: 2 of 2 jobs passed"


@pytest.mark.parametrize("body", ["exit 0", "echo '=== 4 skipped in 0.10s ==='"])
def test_a_job_in_which_no_test_passed_has_failed(tmp_path: Path, body: str) -> None:
    status, summary = run(tmp_path, {"empty": body})
    assert status == 1
    assert summary[0].startswith("FAILED")


def source(*, gigabytes: int, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Sources what the jobs begin with, as far as its checks."""
    script = f'source "{ROOT}/.ci/fresh_environment" {gigabytes}'
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_a_disk_that_is_too_full_is_refused_at_once() -> None:
    ran = source(gigabytes=1_000_000_000)
    assert ran.returncode == 1
    assert "Expected 1000000000 GB free" in ran.stderr
    assert "Set TMPDIR" in ran.stderr


def test_an_old_python_is_refused_at_once(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    ran = source(gigabytes=1, path=f"{tmp_path}:{os.environ['PATH']}")
    assert ran.returncode == 1
    assert "Expected Python 3.11 or newer as python3, got Python 3.9.2." in ran.stderr


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_can_be_started_and_begins_with_a_fresh_environment(job: Path) -> None:
    assert os.access(job, os.X_OK)
    text = job.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# SPDX-License-Identifier: Apache-2.0\n")
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert commands[0].startswith('source "$(dirname "${BASH_SOURCE[0]}")/../fresh_environment" ')
