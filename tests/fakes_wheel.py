# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution, built and installed as a user would."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


class Builder:
    """Builds distributions into a folder, with a hatchling of its own; skips where there is no index to get it from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        backend = [*_PIP, "install", "--target", str(folder / "backend"), "hatchling>=1.27"]
        outcome = subprocess.run(backend, capture_output=True, text=True, check=False)
        if outcome.returncode:
            pytest.skip(f"needs hatchling, and an index to get it from: {outcome.stderr[-200:]}")
        self._environment = {**os.environ, "PYTHONPATH": str(folder / "backend")}

    def sdist(self) -> Path:
        """Builds the source distribution of the checkout."""
        self._run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(self._folder / "sdist"))
        (archive,) = (self._folder / "sdist").glob("*.tar.gz")
        return archive

    def wheel(self, source: Path = ROOT) -> Path:
        """Builds the wheel of the checkout or of a source distribution."""
        out = self._folder / f"wheel-of-{source.name}"
        self._run(*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source))
        (wheel,) = out.glob("*.whl")
        return wheel

    def installed(self) -> Path:
        """Installs the wheel, without its dependencies, into a folder for `PYTHONPATH`."""
        site = self._folder / "site"
        self._run(*_PIP, "install", "--no-deps", "--target", str(site), str(self.wheel()))
        return site

    def _run(self, *command: str) -> None:
        outcome = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        assert outcome.returncode == 0, outcome.stderr


def wheel_environment(site: Path, *first: Path) -> Mapping[str, str]:
    """Environment variables with the installation on `PYTHONPATH`, behind the folders `first`."""
    paths = os.pathsep.join(map(str, (*first, site)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
