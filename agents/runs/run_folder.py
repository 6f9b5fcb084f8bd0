# SPDX-License-Identifier: Apache-2.0
"""One training run: its settings, its folder, and the provenance of its results."""

import csv
import datetime
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from speckv.agents.runs.console import Console
from speckv.agents.runs.settings import TrainSettings
from speckv.cores import usable_cores
from speckv.errors import CheckpointError, ConfigError
from speckv.evaluation.curves import EVAL
from speckv.evaluation.metrics import Grid, Sums
from speckv.evaluation.run_facts import CONFIG, RUN, read_facts
from speckv.files import canonical_json, csv_text, write_atomically
from speckv.runtime import Policy
from speckv.runtime.storage import RUN_POLICY
from speckv.types import Controller

OVERRIDES = "overrides.txt"
EVENTS = "tb"
EVALUATION = "evaluation"
LAST = Path("checkpoints") / "last.pt"
BEST = Path("checkpoints") / "best.pt"

EVAL_COLUMNS = (
    "step",
    "prompt_id",
    "task",
    "compression",
    "tokens",
    "seconds",
    "steps",
    "drafted",
    "accepted",
    "tested",
)
_PACKAGES = ("gymnasium", "hydra-core", "numpy", "sb3-contrib", "speckv", "stable-baselines3", "torch")


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(output: str | None, runs_dir: str, name: str) -> "RunFolder":
        """Makes the folder `output`, which must be new or empty, or without it `runs_dir/name`, numbered if taken."""
        if output is not None:
            path = Path(output)
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ConfigError(
                    f"Expected output={output} to be a new folder, but it exists. Name another, or continue that run "
                    f"with resume={output}."
                )
            path.mkdir(parents=True, exist_ok=True)
            return RunFolder(path)
        for attempt in range(1, 1000):
            path = Path(runs_dir) / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return RunFolder(path)
        raise ConfigError(f"Expected a free name for a run in {runs_dir}, but {name} is taken a thousand times over.")

    def __truediv__(self, name: str | Path) -> Path:
        """Path of a file inside."""
        return self.path / name

    def record_start(self, config: str, overrides: Sequence[str], facts: Mapping[str, object]) -> None:
        """Writes the overrides, the resolved config and the facts."""
        # The overrides first: with them a study recognises a run that was stopped and may be started again.
        write_atomically(self / OVERRIDES, "".join(f"{line}\n" for line in overrides))
        write_atomically(self / CONFIG, config)
        write_atomically(self / RUN, canonical_json(facts))

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Passes if the run in this folder began with the same facts, or raises CheckpointError."""
        before = read_facts(self.path)
        if not before:
            raise CheckpointError(f"Expected a run folder with a {RUN} at {self.path}, found none.")
        for key, fact in facts.items():
            if before.get(key) != fact:
                raise CheckpointError(
                    f"Expected to continue {self.path} with the same {key}, {json.dumps(before.get(key))}, "
                    f"got {json.dumps(fact)}. Restore it, or start a new run."
                )

    def save_policy(self, controller: Controller, provenance: Mapping[str, object], **deployment: Any) -> None:
        """Writes the run's controller in place of an earlier one."""
        Policy.of(controller, trained_on=provenance, **deployment).save(self / RUN_POLICY)

    def append_evaluation(self, step: int, grid: Grid, sums: Sums) -> None:
        """Adds one row per prompt and compression."""
        path = self / EVAL
        rows: list[Sequence[object]] = [] if path.exists() else [EVAL_COLUMNS]
        for row, (prompt, task) in enumerate(zip(grid.prompt_ids, grid.tasks, strict=True)):
            for column, compression in enumerate(grid.compressions):
                if sums.steps[row, column]:
                    counts = (sums.steps, sums.drafted, sums.accepted, sums.tested)
                    head = [step, prompt, task, compression]
                    clock = [int(sums.tokens[row, column]), f"{sums.seconds[row, column]:.9g}"]
                    rows.append([*head, *clock, *(int(c[row, column]) for c in counts)])
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(csv_text(rows))

    def drop_evaluations_after(self, step: int) -> None:
        """Drops rows after the checkpoint that a run resumes from; they will be written again."""
        path = self / EVAL
        if not path.exists():
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(EVAL_COLUMNS)]
        kept = [row for row in rows if not row[0].isdecimal() or int(row[0]) <= step]
        write_atomically(path, csv_text(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Settings of a training run, and its console."""

    name: str
    agent: Any
    settings: TrainSettings
    console: Console
    config: str
    overrides: Sequence[str]

    @property
    def resumes(self) -> bool:
        """Whether it continues an earlier run."""
        return self.settings.resume is not None

    def open_folder(
        self, label: str, cost: str, facts: Mapping[str, object], others: Mapping[str, object]
    ) -> RunFolder:
        """Opens the folder of the run to resume, or makes a new one and records the start.

        Args:
            label: Begins the name of a new folder.
            facts: Those besides the settings that decide the result; a resumed run must have the same.

        Raises:
            CheckpointError: if the run to resume began with other facts.
            ConfigError: if the new folder exists.
        """
        settings = self.settings
        decisive = {"agent": self.name, **facts, "seed": settings.seed}
        if settings.resume is not None:
            folder = RunFolder(Path(settings.resume))
            folder.require_same(decisive)
            return folder
        now = datetime.datetime.now(datetime.UTC)
        record = {**decisive, "started": now.isoformat(timespec="microseconds"), **others, **provenance()}
        label = label.rpartition(":")[2]  # of "module:Class" the class
        name = f"{label}-{cost}-{now.astimezone():%Y%m%d-%H%M%S}-seed{settings.seed}"
        folder = RunFolder.create(settings.output, settings.runs_dir, name)
        folder.record_start(self.config, self.overrides, record)
        return folder


def provenance() -> dict[str, object]:
    """Commit, machine and package versions of a result, without names of persons and hosts."""
    machine = {"platform": platform.platform(), "processor": platform.machine(), "cpu_count": usable_cores()}
    return {"commit": _commit(), "machine": machine, "versions": _versions()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    # An installed package may lie inside somebody else's checkout.
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return outcome.stdout.strip()
