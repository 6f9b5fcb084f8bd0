# SPDX-License-Identifier: Apache-2.0
"""Controllers that play a script for each request, and as much of vLLM's scheduler as ours stands on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.types import FloatArray, IntArray, StepOutcome

CONFIDENCE = STOPPING_SCHEMA.index("token_confidence")
PLACE = [SCHEMA.index(name) for name in ("position", "tokens_left")]
"""What tells where in its budget a text is."""
TYPICAL = np.linspace(0.1, 0.9, SCHEMA.size).astype(np.float32)
"""An observation like no other."""


class Script:
    """Says gammas in turn, anew for each request.

    Attributes:
        played: One of these for each session, as they were opened.
        chosen: Gammas.
        seen: Observations.
        outcomes: What it was told of.
    """

    name, charges_decision = "script", False

    def __init__(self, gammas: Sequence[int], played: list["Script"] | None = None) -> None:
        self.gammas, self.played = gammas, [] if played is None else played
        self.reset()

    def __deepcopy__(self, memo: object) -> "Script":
        self.played.append(type(self)(self.gammas, self.played))
        return self.played[-1]

    def reset(self) -> None:
        self.chosen, self.seen, self.outcomes = list[int](), list[FloatArray](), list[StepOutcome]()

    def act(self, observation: FloatArray) -> int:
        self.seen.append(observation.copy())
        self.chosen.append(self.gammas[len(self.chosen) % len(self.gammas)])
        return self.chosen[-1]

    def act_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError

    def learn(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)

    @property
    def drafted(self) -> list[int]:
        """Tokens drafted in each step."""
        return [outcome.num_drafted for outcome in self.outcomes]

    @property
    def accepted(self) -> list[int]:
        """Tokens kept in each step."""
        return [outcome.num_accepted for outcome in self.outcomes]


class Learner:
    """Learns: says gammas in turn over all requests, and keeps what each of its own choices came to.

    Attributes:
        pairs: Each chosen gamma and its outcome.
    """

    name, charges_decision, learns = "learner", False, True

    def __init__(self, gammas: Sequence[int]) -> None:
        self.gammas, self.num_chosen = gammas, 0
        self.pairs = list[tuple[int | None, StepOutcome]]()
        self.reset()

    def reset(self) -> None:
        self.chosen: int | None = None

    def save_request(self) -> object:
        return self.chosen

    def load_request(self, request: object) -> None:
        self.chosen = cast(int | None, request)

    def act(self, observation: FloatArray) -> int:  # noqa: ARG002
        said = self.chosen = self.gammas[self.num_chosen % len(self.gammas)]
        self.num_chosen += 1
        return said

    def act_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError

    def learn(self, outcome: StepOutcome) -> None:
        self.pairs.append((self.chosen, outcome))
        self.chosen = None


class StopsUnsure(Script):
    """Also ends a draft at a token that the draft is unsure of."""

    name, least = "stops-unsure", 0.5

    def go_on(self, observation: FloatArray) -> bool:
        return bool(observation[CONFIDENCE] >= self.least)

    def go_on_batch(self, observations: FloatArray) -> IntArray:
        raise NotImplementedError


@dataclass(kw_only=True)
class FakeRequest:
    """A request as vLLM's scheduler keeps it; its prompt is read at once, and `num_tokens` grows with its output."""

    request_id: str
    num_prompt_tokens: int = 4
    max_tokens: int = 64
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_output_placeholders: int = 0
    is_prefill_chunk: bool = False
    spec_token_ids: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def is_finished(self) -> bool:
        return self.num_output_tokens >= self.max_tokens


class FakeScheduler:
    """Plans passes as vLLM 0.32 does where none overlap: what is drafted behind a pass is verified in the next."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.num_spec_tokens = getattr(vllm_config.speculative_config, "num_speculative_tokens", 0)
        self.requests: dict[str, FakeRequest] = {}

    def schedule(self, numbers: Mapping[str, int] | None = None) -> Any:
        """Plans a pass over all tokens of all requests, or over so many of each."""
        spec = {name: list(r.spec_token_ids) for name, r in self.requests.items() if r.spec_token_ids}
        scheduled = numbers or {
            name: r.num_tokens - r.num_computed_tokens + len(r.spec_token_ids) for name, r in self.requests.items()
        }
        output = SimpleNamespace(
            num_scheduled_tokens=dict(scheduled),
            scheduled_spec_decode_tokens=spec,
            num_spec_tokens_to_schedule=self.num_spec_tokens,
            num_invalid_spec_tokens=None,
        )
        self._update_after_schedule(output)
        return output

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        for name, number in scheduler_output.num_scheduled_tokens.items():
            request = self.requests[name]
            request.num_computed_tokens += number
            request.is_prefill_chunk = request.num_computed_tokens < request.num_tokens
            request.spec_token_ids = []

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> str:
        sampled = model_runner_output.sampled_token_ids
        for name, place in model_runner_output.req_id_to_index.items():
            request, tokens = self.requests[name], sampled[place] if sampled else []
            if not tokens:
                continue
            drafted = len(scheduler_output.scheduled_spec_decode_tokens.get(name, ()))
            request.num_computed_tokens -= drafted - (len(tokens) - 1)
            # Cut at the end of the budget, in place, as vLLM does.
            del tokens[request.max_tokens - request.num_output_tokens :]
            request.num_output_tokens += len(tokens)
        for name in [name for name, request in self.requests.items() if request.is_finished()]:
            del self.requests[name]
        return "outputs"

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        for name, tokens in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            self.requests[name].spec_token_ids = tokens

    def finish_requests(self, request_ids: Sequence[str], finished_status: object) -> list[str]:
        del finished_status
        return [self.requests.pop(name).request_id for name in request_ids]


def fake_config(**changes: Any) -> Any:
    """What is read of vLLM's configuration, by dotted name."""
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=8, num_speculative_tokens_per_batch_size=[[1, 4, 8]]),
        scheduler_config=SimpleNamespace(async_scheduling=False, max_num_seqs=4),
        parallel_config=SimpleNamespace(world_size=1),
        model_config=SimpleNamespace(max_model_len=128, get_vocab_size=lambda: 256),
    )
    for name, value in changes.items():
        part, _, key = name.partition("__")
        setattr(getattr(config, part), key, value) if key else setattr(config, part, value)
    return config
