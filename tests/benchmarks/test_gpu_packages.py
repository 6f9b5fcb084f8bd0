# SPDX-License-Identifier: Apache-2.0
"""What the stage `machine` finds missing: packages, versions, what packages need in turn, and the commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import machine
from benchmarks.gpu.packages import absent_behind, check_packages, required
from benchmarks.gpu.settings import ROOT
from speckv.errors import ConfigError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages come before those that are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, name: str, version: str, *needs: str) -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_requirements_are_pyprojects() -> None:
    names = set(check_packages())
    assert {"torch", "transformers", "hydra-core", "accelerate", "gguf", "hypothesis", "pytest"} <= names
    assert not names & {"selenium", "speckv", "onnx", "optuna"}
    assert "transformers>=5.23,<6" in required()


def test_a_version_that_is_too_old_is_refused(site: Path) -> None:
    install(site, "transformers", "5.17.0")
    with pytest.raises(ConfigError, match=r"of another version: transformers>=5\.23,<6 \(found 5\.17\.0\)") as caught:
        check_packages()
    assert str(caught.value).endswith("--no-deps --find-links WHEELS 'transformers>=5.23,<6'")
    assert "missing" not in str(caught.value)


def test_a_build_of_a_vendor_will_do(site: Path) -> None:
    install(site, "torch", "2.9.0a0+nv25.1", "nvidia-no-such-cu13; python_version > '3'", "triton-no-such")
    assert check_packages(["torch>=2.6"]) == {"torch": "2.9.0a0+nv25.1"}


def test_what_packages_need_in_turn_is_named(site: Path) -> None:
    install(site, "carrier", "1", "middle>=9", "no-such-extra; extra == 'x'", "no-such-old; python_version < '3'")
    install(site, "middle", "1", "No_Such.runtime==4.9.*", "carrier", "not a requirement")
    assert absent_behind(["carrier"]) == {"no-such-runtime": "middle"}
    with pytest.raises(
        ConfigError, match=r"missing here: absent>=2, no-such-runtime \(needed by middle\)\. Carry"
    ) as e:
        check_packages(["carrier", "absent>=2"])
    assert str(e.value).endswith("WHEELS 'absent>=2' no-such-runtime")


def test_packaging_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    with pytest.raises(ConfigError, match=r"missing here: packaging, no-such>=1\. Carry"):
        check_packages(["numpy", "no-such>=1"])


def test_a_bare_interpreter_says_what_is_missing() -> None:
    program = (
        "import json, benchmarks.gpu.__main__; from benchmarks.gpu.settings import Settings; "
        "from benchmarks.gpu.worker import run_stage; "
        "print(json.dumps(run_stage('benchmarks.gpu.machine:run', Settings(device='cpu'), None, 60.0)))"
    )
    told = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    pieces = json.loads(told.stdout)["pieces"]
    assert "missing here: packaging, bitsandbytes" in pieces["packages"]["error"]
    assert "torch>=2.6" in pieces["packages"]["error"]
    assert pieces["device"]["error"] == "ModuleNotFoundError: No module named 'torch'"
    assert pieces["commit"]["status"] == "ok"


def test_a_copy_without_its_history_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECKV_COMMIT", "0123456789ab-dirty")
    monkeypatch.setattr(machine, "_told", lambda _: "fedcba987654")
    assert machine.commit() == "fedcba987654"
    monkeypatch.setattr(machine, "_told", lambda _: "unknown")
    assert machine.commit() == "0123456789ab-dirty"
    monkeypatch.delenv("SPECKV_COMMIT")
    assert machine.commit() == "unknown"


def test_a_program_that_is_not_there_is_unknown() -> None:
    assert machine._told(["no-such-program"]) == "unknown"
