# SPDX-License-Identifier: Apache-2.0
"""Online learning from a stream of live requests, saved after each request."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import AGENTS, TrainingData, begin_learner
from speckv.agents.runs.checkpoint import start_bandit
from speckv.agents.runs.console import ProgressBar, catch_signals
from speckv.agents.runs.monitor import RunWriter
from speckv.agents.runs.requests import LEARN, DecodedRequest, LiveTask, RequestLog, decode_request, summarise
from speckv.agents.runs.run_folder import Run, RunFolder
from speckv.agents.runs.task import load_splits
from speckv.errors import CheckpointError, SpecKVError
from speckv.evaluation.replays import draw_requests
from speckv.files import write_atomically
from speckv.runtime.state import ControllerState
from speckv.runtime.storage import dump_tensors, read_tensors

CHECKPOINT = Path("checkpoints") / "last.safetensors"
_STATE = "live_state"


@dataclass(slots=True, kw_only=True)
class OnlineProgress:
    """State of a stream beside its learner; `reward` sums tokens per second over steps, plain decoding's as unit."""

    next_request: int = 0
    num_steps: int = 0
    reward: float = 0.0
    recent: list[DecodedRequest] = field(default_factory=list)


class OnlineTraining:
    """Learns from live requests: all prompts in a random order, then again."""

    def __init__(
        self, run: Run, task: LiveTask, log: RequestLog, source: Path | None, provenance: Mapping[str, object]
    ) -> None:
        assert run.settings.live is not None
        self._run, self._live, self._task, self._log = run, run.settings.live, task, log
        self._provenance = provenance
        self.progress = OnlineProgress()
        self._bandit, self._begun_with = self._first(source)

    def _first(self, source: Path | None) -> tuple[Bandit, str]:
        run, task, settings = self._run, self._task, self._run.settings
        if settings.resume is not None:
            bandit, self.progress = load_online(Path(settings.resume) / CHECKPOINT, run.name, run.agent)
            return bandit, f"request {self.progress.next_request} of the stream"
        if source is not None:
            bandit = start_bandit(run.name, run.agent, source, task.cost, task.compression, settings.seed)
            return bandit, f"what {source} has learned"
        # Recordings give the observations' scale alone; all else is learned live.
        train, _ = load_splits(settings.data)
        if task.compression in train.compressions:
            train = train.select(compressions=(task.compression,))
        begun = begin_learner(run.name, run.agent, TrainingData(train=train, cost=task.cost, seed=settings.seed))
        assert isinstance(begun, Bandit)
        return begun, "nothing"

    @property
    def done(self) -> int:
        """Decode steps so far."""
        return self.progress.num_steps

    @property
    def recent(self) -> list[DecodedRequest]:
        """The last requests."""
        return self.progress.recent

    def begin(self, folder: RunFolder) -> str:
        """Saves the first state, or continues the log; describes the run in a few words."""
        self._log.drop_from(self.progress.next_request)
        if not self._run.resumes:
            self._save(folder)
        return f"{self._live.requests} requests, beginning with {self._begun_with}"

    def learn(self, folder: RunFolder, writer: RunWriter) -> None:
        """Decodes the rest of the stream; a signal raises InterruptedTraining once its request is saved."""
        task, total, progress = self._task, self._live.requests, self.progress
        order = draw_requests(range(len(task.learning)), total, np.random.default_rng(self._run.settings.seed))
        plain_s = task.cost.plain_s(task.compression)
        with catch_signals() as request, self._run.console.progress(total, progress.next_request, "request") as bar:
            for number in range(progress.next_request, total):
                prompt = task.learning[order[number]]
                decoded = DecodedRequest(number=number, prompt_id=prompt.prompt_id, phase=LEARN, arm=self._bandit.name)
                try:
                    result = decode_request(task, self._bandit, prompt, decoded, self._log)
                except (SpecKVError, KeyboardInterrupt):
                    self._store(folder)  # with the steps of the unfinished request
                    raise
                decoded.reward = sum(s.outcome.num_emitted * plain_s / s.outcome.seconds for s in result.steps)
                progress.next_request, progress.num_steps = number + 1, progress.num_steps + decoded.num_steps
                progress.reward += decoded.reward
                progress.recent = [*progress.recent, decoded][-self._live.recent :]
                self._save(folder)
                self._report(decoded, writer, bar)
                request.raise_if_set()

    def _store(self, folder: RunFolder) -> None:
        folder.save_policy(self._bandit, self._provenance)

    def _save(self, folder: RunFolder) -> None:
        self._store(folder)
        save_online(folder / CHECKPOINT, self._bandit, self.progress)

    def _report(self, decoded: DecodedRequest, writer: RunWriter, bar: ProgressBar) -> None:
        progress = self.progress
        one, recent = summarise([decoded]), summarise(progress.recent)
        writer.scalars(
            {
                "live/tokens_per_s": one["tokens_per_s"],
                "live/tokens_per_s_recent": recent["tokens_per_s"],
                "live/tokens_per_step": one["tokens_per_step"],
                "live/mean_drafted": one["mean_drafted"],
                "live/reward": decoded.reward / max(decoded.num_steps, 1),
                "live/running_reward": progress.reward / max(progress.num_steps, 1),
            },
            progress.num_steps,
        )
        bar.update(progress.next_request, f"{recent['tokens_per_s']:.2f} tokens/s")
        bar.milestone(
            f"{decoded.prompt_id}: {one['tokens_per_s']:.2f} tokens/s, {one['tokens_per_step']:.2f} tokens a step, "
            f"{one['mean_drafted']:.2f} drafted; last {len(progress.recent)}: {recent['tokens_per_s']:.2f} tokens/s"
        )


def save_online(path: Path, bandit: Bandit, progress: OnlineProgress) -> None:
    """Writes a learner, its generator and the stream's state as one file, or leaves the file as it was."""
    learned = bandit.state()
    rest = {
        "kind": bandit.kind,
        "compressions": learned.compressions,
        "rng": bandit.rng.bit_generator.state,
        "state": asdict(progress),
    }
    text = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    write_atomically(path, dump_tensors({**learned.arrays, _STATE: text}))


def load_online(path: Path, name: str, settings: Any) -> tuple[Bandit, OnlineProgress]:
    """Reads what `save_online` wrote; a CheckpointError if it is missing, damaged or of another agent."""
    try:
        arrays = read_tensors(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(
            f"Expected a checkpoint at {path}, found none. Name a run of agent={name} in env=live."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no readable checkpoint: it is damaged. Start a new run.") from error
    try:
        rest = json.loads(arrays.pop(_STATE).tobytes())
        if rest["kind"] != name:
            raise CheckpointError(f"{path}: expected a checkpoint of agent={name}, got one of {rest['kind']}.")
        learned = ControllerState(settings=asdict(settings), arrays=arrays, compressions=tuple(rest["compressions"]))
        bandit: Bandit = AGENTS[name].controller_class.from_state(learned)
        bandit.rng.bit_generator.state = rest["rng"]
        progress = OnlineProgress(**rest["state"])
        progress.recent = [DecodedRequest(**one) for one in rest["state"]["recent"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} does not fit this run ({error}). Start a new run.") from error
    return bandit, progress
