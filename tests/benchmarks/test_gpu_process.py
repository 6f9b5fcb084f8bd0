# SPDX-License-Identifier: Apache-2.0
"""A stage's process: what it warns of and leaves behind, and that no signal and no lost parent makes it an orphan."""

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import process
from benchmarks.gpu import work as work_module
from benchmarks.gpu.process import in_process, isolated
from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.stages import Stage, run_all
from benchmarks.gpu.work import Work

TINY = Settings(device="cpu", tiny=True)


# -- stages, run by name -----------------------------------------------------------------------------------------------


def holds(_: Settings, work: Work) -> None:
    """Holds on to the device, with a child."""
    child = subprocess.Popen(["sleep", "600"])
    work.piece("first", lambda: [os.getpid(), child.pid])
    work.piece("second", child.wait)


def quick(_: Settings, work: Work) -> None:
    """Does next to nothing."""
    work.piece("only", lambda: 1)


def warns(settings: Settings, work: Work) -> None:
    """Warns in every way, and fails at the end if it is to."""
    log = logging.getLogger("speckv.somewhere")
    for _ in range(3):
        log.warning("CUDA graphs are %s", "off")
    log.info("no matter")
    logging.getLogger("transformers.models").error("no such kernel")
    if settings.tiny:
        warnings.warn("slow path", UserWarning, stacklevel=1)
    work.piece("fails", lambda: 1 // 0)


def floods(*_: object) -> None:
    """Warns without end, and raises."""
    for i in range(200):
        logging.getLogger("flood").warning("%d", i)
    raise ValueError("enough")


def vanishes(*_: object) -> None:
    """Ends its process before anything is written."""
    os._exit(7)


def stage(name: str) -> Stage:
    return Stage(name=name, what="a test's", function=f"tests.benchmarks.test_gpu_process:{name}", budget_s=60.0)


# -- helpers -----------------------------------------------------------------------------------------------------------


def wait_for(what: Callable[[], Any], *, timeout_s: float = 30.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.1)
    return found


def first_found(part: Path) -> Any:
    """What the first piece of a stage has found, once the second one is under way."""
    if not part.is_file():
        return None
    pieces = json.loads(part.read_text(encoding="utf-8"))["pieces"]
    return pieces["first"]["found"] if "second" in pieces else None


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has, whoever ought to reap it."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


PARENT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
from benchmarks.gpu import __main__ as program, stages
from tests.benchmarks.test_gpu_process import stage
stages.STAGES = program.STAGES = (stage("holds"), stage("quick"))
sys.exit(program.main(["--device", "cpu", "--tiny", "--out", sys.argv[1]]))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The program, running a stage that holds on."""
    running = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "r.json")], cwd=ROOT)
    yield running
    running.kill()
    running.wait()


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("which", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_and_keeps_what_was_found(
    which: signal.Signals, status: int, parent: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    part = tmp_path / "r.holds.part.json"
    pids = wait_for(lambda: first_found(part))
    parent.send_signal(which)
    assert parent.wait(timeout=30) == status
    stages = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["stages"]
    assert stages.keys() == {"holds"}
    assert (stages["holds"]["status"], stages["holds"]["error"]) == ("error", f"ended by {which.name}")
    assert stages["holds"]["pieces"]["first"]["found"] == pids
    assert stages["holds"]["pieces"]["second"]["error"] == f"ended by {which.name}"
    assert wait_for(lambda: all(map(gone, pids)))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
def test_a_killed_parent_takes_the_stage_and_its_children_with_it(
    parent: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    part = tmp_path / "r.holds.part.json"
    pids = wait_for(lambda: first_found(part))
    assert not any(map(gone, pids))
    parent.kill()
    assert wait_for(lambda: all(map(gone, pids)), timeout_s=10)
    assert first_found(part) == pids  # left beside the report


def test_an_ignored_hang_up_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.signals_noted() as came:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_process_that_is_stuck_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Stuck:
        pid = 1 << 30

        def wait(self, timeout: float) -> int:
            assert timeout == 30
            raise subprocess.TimeoutExpired("stuck", timeout)

    monkeypatch.setattr(os, "killpg", lambda *_: None)
    stuck: Any = Stuck()
    assert process._end(stuck) is False
    assert "still there after 30 s" in caplog.text


@pytest.mark.slow
def test_a_part_that_a_killed_run_left_is_not_taken_for_found(tmp_path: Path) -> None:
    part = tmp_path / "r.vanishes.part.json"
    part.write_text('{"status": "ok", "pieces": {}}', encoding="utf-8")
    (tmp_path / f".{part.name}.17.partial").touch()
    entry = isolated(stage("vanishes"), TINY, part)
    assert (entry["status"], entry["error"]) == ("error", "its process ended with code 7")
    run_all([stage("quick")], TINY, tmp_path / "r.json", runner=in_process, command="test")
    run_all([stage("vanishes")], TINY, tmp_path / "r.json", runner=lambda *_: entry, command="test")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_warnings_are_kept_once_whatever_the_status() -> None:
    entry = in_process(stage("warns"), Settings(device="cpu"), None)
    assert entry["warnings"] == ["speckv.somewhere: CUDA graphs are off", "transformers.models: no such kernel"]
    flood = in_process(stage("floods"), TINY, None)
    assert (flood["status"], len(flood["warnings"]), flood["warnings"][0]) == ("error", 50, "flood: 0")
    assert in_process(stage("quick"), TINY, None)["warnings"] == []


@pytest.mark.slow
def test_warnings_of_a_process_include_pythons_own() -> None:
    entry = isolated(stage("warns"), TINY, None)
    assert "speckv.somewhere: CUDA graphs are off" in entry["warnings"]
    assert [text for text in entry["warnings"] if text.startswith("py.warnings: ") and "slow path" in text]


# -- memory ------------------------------------------------------------------------------------------------------------


class Model:
    """What holds memory, in a ring of references, as models do."""

    def __init__(self) -> None:
        self.ring = self


def test_a_piece_leaves_no_model_behind_even_where_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module.logger, "disabled", True)  # pytest keeps records, and so the traceback's frames
    made: list[weakref.ref[Model]] = []

    def runs_out() -> None:
        model = Model()
        made.append(weakref.ref(model))
        raise RuntimeError("CUDA out of memory")

    work = Work(None, 60)
    gc.disable()
    try:
        work.piece("big", runs_out)
    finally:
        gc.enable()
    assert work.pieces["big"]["error"] == "RuntimeError: CUDA out of memory"
    assert made[0]() is None


def test_a_piece_gives_the_device_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    work = Work(None, 60)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(work.pieces)))
    work.piece("on a CPU", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    work.piece("on a GPU", lambda: 1)
    assert emptied == [2]

    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    work.piece("on a lost one", lambda: 1)
    assert work.finish()["status"] == "ok"
