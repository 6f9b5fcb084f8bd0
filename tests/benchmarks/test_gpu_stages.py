# SPDX-License-Identifier: Apache-2.0
"""The GPU day's clock and report: how stages share the time, what is refused or skipped, and what a report hides."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.report import placeless, without_places
from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.stages import STAGES, Stage, chosen, require_time, run_all, share
from benchmarks.gpu.work import Entry
from speckv.errors import ConfigError

TINY = Settings(device="cpu", tiny=True)
NAMES = [stage.name for stage in STAGES]
WITHOUT_FOLDER = chosen(NAMES, named_by_device=False, weights=False)


class Spender:
    """A runner whose stages take a share of what they are given, on a clock of its own."""

    def __init__(self, spends: float | dict[str, float]) -> None:
        self.now = 0.0
        self.given: dict[str, float] = {}
        self._spends = spends

    def clock(self) -> float:
        return self.now

    def __call__(self, stage: Stage, settings: Settings, part: Path | None) -> Entry:
        del settings, part
        self.given[stage.name] = stage.budget_s
        spends = self._spends if isinstance(self._spends, float) else self._spends.get(stage.name, 1.0)
        self.now += spends * stage.budget_s
        return {"status": "ok", "seconds": spends * stage.budget_s, "pieces": {}}

    def run(self, stages: list[Stage], minutes: float, out: Path) -> dict[str, str]:
        *_, statuses = run_all(stages, TINY, out, runner=self, command="test", minutes=minutes, clock=self.clock)
        return statuses


def test_twenty_minutes_give_every_stage_its_budget(tmp_path: Path) -> None:
    assert sum(stage.budget_s for stage in STAGES) == 20 * 60
    for stages in (list(STAGES), WITHOUT_FOLDER):
        spender = Spender(1.0)
        spender.run(stages, 20.0, tmp_path / "r.json")
        assert spender.given == pytest.approx({stage.name: stage.budget_s for stage in STAGES})


@pytest.mark.parametrize("minutes", [6.4, 8.0, 12.0])
def test_stages_end_together_within_the_minutes(minutes: float, tmp_path: Path) -> None:
    spender = Spender(1.0)
    spender.run(WITHOUT_FOLDER, minutes, tmp_path / "r.json")
    assert sum(spender.given.values()) == pytest.approx(60 * minutes)
    assert all(stage.least_s <= spender.given[stage.name] <= stage.budget_s for stage in WITHOUT_FOLDER)


def test_what_a_stage_leaves_goes_to_those_behind_it(tmp_path: Path) -> None:
    thrifty = Spender(dict.fromkeys(["machine", "weights", "tests"], 0.0))
    thrifty.run(WITHOUT_FOLDER, 7.0, tmp_path / "r.json")
    full = Spender(1.0)
    full.run(WITHOUT_FOLDER, 7.0, tmp_path / "r.json")
    behind = ["lossless", "calibration", "throughput", "breakdown"]
    assert all(thrifty.given[name] > full.given[name] + 5 for name in behind)
    assert sum(thrifty.given[name] for name in behind) == pytest.approx(7 * 60)


def test_a_stage_with_too_little_time_is_skipped_and_keeps_what_was_found(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    greedy = Spender({"machine": 11.0})  # a process that did not go
    stages = [replace(stage, least_s=20.0) for stage in WITHOUT_FOLDER[-3:]]
    assert Spender(1.0).run(stages[:1], 20.0, out) == {"calibration": "ok"}
    statuses = greedy.run([WITHOUT_FOLDER[0], *stages], 5.0, out)
    assert statuses == {"machine": "ok", "calibration": "skipped", "throughput": "skipped", "breakdown": "skipped"}
    found = json.loads(out.read_text(encoding="utf-8"))["stages"]
    assert (found["calibration"]["status"], found["throughput"]["status"]) == ("ok", "skipped")
    assert found["throughput"]["error"] == "0 s were left for it"


def test_a_share_is_never_more_than_what_is_left() -> None:
    assert share(list(STAGES[-2:]), 40.0) <= 40.0
    assert share(list(STAGES[-1:]), 40.0) == 40.0
    assert share(list(STAGES[1:2]), 500.0) == 210.0
    assert share(list(STAGES[-2:]), -5.0) == 0.0


@pytest.mark.parametrize("minutes", [6.3, 0.0, -1.0, float("nan")])
def test_too_few_minutes_are_refused(minutes: float) -> None:
    require_time(WITHOUT_FOLDER, 380 / 60)
    with pytest.raises(ConfigError, match=r"at least 6\.34 minutes \(machine 45 s, .*\), got .* fewer stages"):
        require_time(WITHOUT_FOLDER, minutes)


def test_the_program_refuses_in_one_line_and_counts_the_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "r.json"
    assert program.main(["--minutes", "9", "--weights", str(tmp_path), "--out", str(out)]) == 2
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "at least 9.75 minutes" in caplog.text
    assert not out.exists()


def test_below_fifteen_minutes_a_run_is_short() -> None:
    assert program.read_settings(program.parse(["--minutes", "14.9"])).short
    assert not program.read_settings(program.parse(["--minutes", "15"])).short
    assert program.parse([]).minutes == 20.0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_hands_minutes_on_only_where_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*arguments: str) -> str:
        return subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for name in ("MINUTES", "MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    assert "--minutes" not in told("gpu")
    assert "--minutes 9" in told("gpu", "MINUTES=9")
    assert "--minutes 30" in told("soak")
    monkeypatch.setenv("MINUTES", "8")
    assert "--minutes 8" in told("gpu")


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_report_names_no_place_of_the_machine() -> None:
    told = placeless(f"{Path.home() / 'weights' / 'a.gguf'} {ROOT / 'speckv' / 'files.py'} -I{sys.prefix}/include", {})
    assert told in (
        "~/weights/a.gguf ./speckv/files.py -IPYTHON/include",
        "./weights/a.gguf ./speckv/files.py -IPYTHON/include",
    )


def test_a_report_names_no_folder_of_the_user_and_no_temporary_one() -> None:
    places = {"/srv/models": "WEIGHTS", "/srv/models/out": "OUT"}
    content = {
        "command": "python -m benchmarks.gpu --weights /srv/models --out /srv/models/out/r.json",
        "traceback": ['  File "/tmp/tmpab12/deep/x.py", line 3\n/var/tmp/y/z.bin', 1, None],
    }
    assert without_places(content, places) == {
        "command": "python -m benchmarks.gpu --weights WEIGHTS --out OUT/r.json",
        "traceback": ['  File "TMP/x.py", line 3\nTMP/z.bin', 1, None],
    }


def test_the_folders_that_were_named_are_hidden_as_typed_and_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    options = program.parse(["--weights", f"{tmp_path}/link/", "--out", "relative/r.json"])
    places = program.named_places(options, program.read_settings(options))
    assert places == {
        f"{tmp_path}/link": "WEIGHTS",
        str((tmp_path / "real").resolve()): "WEIGHTS",
        str(Path("relative").resolve()): "OUT",
    }


def test_the_report_and_not_only_its_command_is_placeless(tmp_path: Path) -> None:
    out = tmp_path / "r.json"

    def fails(stage: Stage, settings: Settings, part: Path | None) -> Entry:
        del stage, settings, part
        return {"status": "error", "error": f"no file {tmp_path}/a", "seconds": 1.0, "log": [f"{tmp_path}/b"]}

    run_all([STAGES[0]], TINY, out, runner=fails, command=f"--out {out}", places={str(tmp_path): "OUT"})
    text = out.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "no file OUT/a" in text
