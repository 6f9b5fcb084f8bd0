# SPDX-License-Identifier: Apache-2.0
"""A bandit learns from a stream of live requests, and is saved after each of them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.bandits.base import Bandit
from agents.parts import Parts
from agents.registry import AGENTS
from agents.runs.console import InterruptedTraining, ProgressBar, StopRequest
from agents.runs.live.decoded import LEARN, Decoded, DecodedLog, summarise
from agents.runs.live.requests import decode_request
from agents.runs.live.task import LiveTask
from agents.runs.tensorboard import RunWriter
from speckv.errors import CheckpointError
from speckv.evaluation.replays import draw_requests
from speckv.files import write_atomically

CHECKPOINT = Path("checkpoints") / "last.npz"
_STATE = "live_state"


@dataclass(slots=True, kw_only=True)
class StreamState:
    """What a stream remembers beside the bandit.

    Attributes:
        next_request: Number of the request that comes next.
        num_steps: Decode steps so far.
        reward: Sum over steps of tokens a second, in units of plain decoding on the cost table.
        recent: The last requests.
    """

    next_request: int = 0
    num_steps: int = 0
    reward: float = 0.0
    recent: list[Decoded] = field(default_factory=list)


def save_stream(path: Path, name: str, bandit: Bandit, state: StreamState) -> None:
    """Writes a bandit, its generator and the stream's state as one file, or leaves the file as it was."""
    parts = AGENTS[name].parts(bandit)
    text = json.dumps({"rng": bandit.rng.bit_generator.state, "state": asdict(state)})
    arrays = {**parts.arrays, _STATE: np.array(text)}
    write_atomically(path, Parts(networks=parts.networks, times=parts.times, arrays=arrays).to_bytes())


def load_stream(path: Path, name: str, settings: Any) -> tuple[Bandit, StreamState]:
    """Reads what `save_stream` wrote.

    Raises:
        CheckpointError: if there is none, or it is damaged or of another agent.
    """
    try:
        parts = Parts.from_bytes(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"Expected a checkpoint at {path}, found none. Name a run of agent={name} in env=live."
        ) from error
    restore = AGENTS[name].restore
    assert restore is not None
    try:
        stored = json.loads(str(parts.needed_array(_STATE)))
        bandit = restore(settings, parts)
        assert isinstance(bandit, Bandit)
        bandit.rng.bit_generator.state = stored["rng"]
        state = StreamState(**stored["state"])
        state.recent = [Decoded(**one) for one in stored["state"]["recent"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} does not fit this run ({error}). Start a new run.") from error
    return bandit, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Live requests for a bandit.

    Attributes:
        task: Models and prompts.
        num_requests: Over the whole run.
        recent: Requests that `StreamState.recent` holds.
        seed: Of the prompts' order: all of them in a random order, then again.
        log: Takes a line a request.
        writer: Takes TensorBoard's scalars, by decode steps.
        save: Called after every request.
    """

    task: LiveTask
    num_requests: int
    recent: int
    seed: int
    log: DecodedLog
    writer: RunWriter
    save: Callable[[Bandit, StreamState], None]

    def learn(self, bandit: Bandit, state: StreamState, request: StopRequest, bar: ProgressBar) -> None:
        """Decodes what is left of the stream.

        Raises:
            InterruptedTraining: after the request that a signal came in, saved.
            SpecKVError: as `generate`.
        """
        order = draw_requests(range(len(self.task.learning)), self.num_requests, np.random.default_rng(self.seed))
        plain_s = self.task.cost.plain_s(self.task.compression)
        for number in range(state.next_request, self.num_requests):
            prompt = self.task.learning[order[number]]
            decoded = Decoded(number=number, prompt_id=prompt.prompt_id, phase=LEARN, arm=bandit.name)
            result = decode_request(self.task, bandit, prompt, decoded, self.log)
            rewards = [s.outcome.num_emitted * plain_s / s.outcome.seconds for s in result.steps]
            decoded.reward = sum(rewards)
            state.next_request, state.num_steps = number + 1, state.num_steps + decoded.num_steps
            state.reward += decoded.reward
            state.recent = [*state.recent, decoded][-self.recent :]
            self.save(bandit, state)
            self._tell(decoded, state, bar)
            if request.signum is not None and state.next_request < self.num_requests:
                raise InterruptedTraining(request.signum)

    def _tell(self, decoded: Decoded, state: StreamState, bar: ProgressBar) -> None:
        one, recent = summarise([decoded]), summarise(state.recent)
        self.writer.scalars(
            {
                "live/tokens_per_s": one["tokens_per_s"],
                "live/tokens_per_s_recent": recent["tokens_per_s"],
                "live/tokens_per_step": one["tokens_per_step"],
                "live/mean_drafted": one["mean_drafted"],
                "live/reward": decoded.reward / max(decoded.num_steps, 1),
                "live/running_reward": state.reward / max(state.num_steps, 1),
            },
            state.num_steps,
        )
        bar.update(state.next_request, f"{recent['tokens_per_s']:.2f} tokens/s")
        bar.milestone(
            f"{decoded.prompt_id}: {one['tokens_per_s']:.2f} tokens/s, {one['tokens_per_step']:.2f} tokens a step, "
            f"{one['mean_drafted']:.2f} drafted; last {len(state.recent)}: {recent['tokens_per_s']:.2f} tokens/s"
        )
