# SPDX-License-Identifier: Apache-2.0
"""What all live runs share: the folder and its facts, signals and errors, the report at the end."""

import datetime
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.runs.console import Console, InterruptedTraining, StopRequest, catch_signals
from agents.runs.live.comparison import compare_live
from agents.runs.live.decoded import Decoded, DecodedLog, summarise
from agents.runs.live.task import LiveTask
from agents.runs.run_folder import EVENTS, RunFolder, default_name, provenance
from agents.runs.settings import LiveSettings, TrainSettings, hyperparameters
from agents.runs.tensorboard import RunWriter
from agents.stored import load_controller
from speckv.errors import SpecKVError
from speckv.files import canonical_json, write_atomically
from speckv.profiling.machine import describe_machine

DECODED = "decoded.jsonl"
REPORT = Path("evaluation") / "live.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """What decides a run, and where it speaks.

    Attributes:
        name: Of the agent.
        agent: Its settings.
        settings: Of the run.
        live: Those of live decoding.
        task: Models and prompts.
        console: Takes what the user sees.
        config: The resolved config as YAML, stored with the run.
        overrides: What was set on the command line, stored with the run.
        source: What learning begins with, or None.
    """

    name: str
    agent: Any
    settings: TrainSettings
    live: LiveSettings
    task: LiveTask
    console: Console
    config: str
    overrides: Sequence[str]
    source: Path | None

    @property
    def resumes(self) -> bool:
        """Whether it continues another."""
        return self.settings.resume is not None

    def open_folder(self) -> RunFolder:
        """Opens the folder to resume, or makes a new one.

        Raises:
            CheckpointError: if the run to resume began on other terms.
            ConfigError: if the new folder exists.
        """
        facts = self._facts()
        if self.settings.resume is not None:
            folder = RunFolder(Path(self.settings.resume))
            folder.require_same(facts, ("agent", "cost", "live", "seed"))
            return folder
        name = default_name(f"{self.name}-live", self.task.cost.name, self.settings.seed)
        folder = RunFolder.create(self.settings.output, self.settings.runs_dir, name)
        folder.record_start(self.config, self.overrides, facts)
        return folder

    def _facts(self) -> dict[str, object]:
        return {
            "agent": self.name,
            "cost": {"name": self.task.cost.name, "sha256": self.task.cost.sha256},
            "init_from": self.settings.init_from,
            "live": self.task.facts,
            "seed": self.settings.seed,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            **provenance(),
        }

    @contextmanager
    def watched(
        self, folder: RunFolder, save: Callable[[], None], purge_step: int | None
    ) -> Iterator[tuple[StopRequest, RunWriter]]:
        """Signals and events while the block runs; where an error ends it, the user is told what is saved.

        Args:
            folder: Of the run.
            save: Called before an error goes on.
            purge_step: Events from this step on, left by a run that was cut off, are hidden.
        """
        writer = RunWriter(folder / EVENTS, purge_step=purge_step)
        try:
            with catch_signals() as request:
                yield request, writer
        except InterruptedTraining:
            raise
        except (SpecKVError, KeyboardInterrupt):
            save()
            self.console.write(
                f"stopped; what was learned and decoded until then is in {folder.path}: decode with "
                f"controller={folder.path}, or go on with resume={folder.path}"
            )
            raise
        finally:
            writer.close()

    def finish(
        self,
        folder: RunFolder,
        recent: Sequence[Decoded],
        step: int,
        log: DecodedLog,
        request: StopRequest,
        writer: RunWriter,
    ) -> dict[str, object]:
        """Compares on the held-out prompts, prints the report, and closes the record.

        Args:
            folder: Of the run; what it holds decodes.
            recent: The last requests of learning.
            step: Steps that were learned from.
            log: Takes a line a request.
            request: Set by a signal.
            writer: Takes the final figures.

        Returns:
            The report, as it is written.

        Raises:
            InterruptedTraining: if a signal came.
            SpecKVError: if models fail.
        """
        report: dict[str, object] = {
            "agent": self.name,
            "cost": self.task.cost.name,
            "live": self.task.facts,
            "machine": describe_machine(getattr(self.task.engine.target, "device", None)),
            "run": str(folder.path),
        }
        final: dict[str, float] = {}
        if recent:
            figures = summarise(recent)
            final["final/tokens_per_s_recent"] = figures["tokens_per_s"]
            report["last_requests"] = {"requests": len(recent), **figures}
            self.console.write(
                f"\nWhile learning, the last {len(recent)} requests: {figures['tokens_per_s']:.2f} tokens/s, "
                "exploration included, on train prompts"
            )
        if self.live.heldout:
            stored = load_controller(folder.path)
            comparison = compare_live(self.task, stored, self.live.fixed_gammas, log, request)
            report["comparison"] = comparison.to_dict()
            final["final/tokens_per_s"] = comparison.arms[stored.name].tokens_per_s
            final |= {f"final/{name}": value for name, value in comparison.ratios().items()}
            self.console.write(f"\n{comparison.render()}")
        if final:
            shared: dict[str, str | int | float] = {
                "agent": self.name,
                "cost": self.task.cost.name,
                "reward": self.settings.reward.name,
                "seed": self.settings.seed,
            }
            writer.hyperparameters({**shared, **hyperparameters(self.agent)}, final, step)
        write_atomically(folder / REPORT, canonical_json(report))
        self.console.write(json.dumps({**final, "run": str(folder.path)}, sort_keys=True))
        return report
