# SPDX-License-Identifier: Apache-2.0
"""The wheel, built and unpacked as an installation would."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def install_wheel(folder: Path) -> Path:
    """Builds the wheel and installs it, without its dependencies, into a folder for `PYTHONPATH`.

    Skips the test where the wheel cannot be built because there is neither hatchling nor an index to get it from.
    """
    site = folder / "site"
    isolation = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", *isolation, "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and any(word in built.stderr for word in ("No matching distribution", "Could not fetch")):
        pytest.skip("needs hatchling, or an index to get it from")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


def wheel_environment(site: Path, *first: Path) -> Mapping[str, str]:
    """Environment variables with the installation on `PYTHONPATH`, behind the folders `first`."""
    paths = os.pathsep.join(map(str, (*first, site)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
