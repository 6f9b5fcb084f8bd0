# SPDX-License-Identifier: Apache-2.0
"""Types that packages share: step outcomes and the controller protocols. NumPy only."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BITS_PER_WEIGHT = {"fp16": 16.0, "int8": 8.0, "nf4": 4.0}
"""Nominal bits stored per weight, quantisation constants left out; `speckv.models.register_compression` adds to it.

`fp16` means unquantised, whatever the dtype.
"""

GAMMA_MAX = 16
"""Most tokens of a draft in recordings, environments and controllers."""

_LARGEST_PADDING = 1024
_PADDED_TO = 8


def same_but_padding(one: int, other: int) -> bool:
    """Whether two vocabulary sizes can be those of one tokenizer, padded differently.

    Layers are padded to multiples of 8 to 512 rows: Qwen2.5 has 151,936 rows up to 3B and 152,064 from 7B on.

    >>> same_but_padding(152_064, 151_936), same_but_padding(151_936, 128_256), same_but_padding(11, 10)
    (True, False, False)
    """
    smaller, larger = sorted((one, other))
    padding = larger - smaller
    return not padding or (padding <= min(_LARGEST_PADDING, smaller // 4) and larger % _PADDED_TO == 0)


NUM_SIGNALS = 3
"""Entropy (nats), confidence (top-1 probability), margin (top-1 minus top-2 probability), in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one decode step did.

    Attributes:
        gamma: Speculation length chosen, in tokens; the draft's own where a stopping controller ended it.
        num_drafted: gamma cut by budget and by a drafted end of text.
        num_tested: The accepted tokens and the first rejected one.
        draft_signals: Shape [num_drafted, 3]: entropy, confidence, margin of the draft at each drafted token.
        seconds: Time of the whole step, on the clock in use.
        draft_s, first_draft_s, verify_s: Of all draft passes, of the first one, and of the rest; 0 where not timed.
        finish: "eos", "length" or None while the text goes on.
    """

    gamma: int
    num_drafted: int
    num_accepted: int
    num_tested: int
    num_emitted: int
    draft_signals: FloatArray
    target_entropy: float
    target_confidence: float
    seconds: float
    draft_s: float = 0.0
    first_draft_s: float = 0.0
    verify_s: float = 0.0
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedSteps:
    """One step of each of many requests; arrays of shape [requests], named as in `StepOutcome`.

    `draft_signals` has shape [requests, depth, 3]; values behind a request's last drafted token are meaningless.
    """

    gamma: IntArray
    num_drafted: IntArray
    num_accepted: IntArray
    num_emitted: IntArray
    draft_signals: FloatArray
    seconds: NDArray[np.float64]

    @staticmethod
    def from_outcome(outcome: StepOutcome) -> "DecodedSteps":
        """The step of one live request."""
        return DecodedSteps(
            gamma=np.array([outcome.gamma]),
            num_drafted=np.array([outcome.num_drafted]),
            num_accepted=np.array([outcome.num_accepted]),
            num_emitted=np.array([outcome.num_emitted]),
            draft_signals=outcome.draft_signals[np.newaxis],
            seconds=np.array([outcome.seconds]),
        )


@runtime_checkable
class Controller(Protocol):
    """Chooses gamma before each decode step, from an observation of the past alone.

    Where `charges_decision` is set, a decision takes the cost table's controller time; a constant's takes none.
    """

    name: str
    charges_decision: bool

    def reset(self) -> None:
        """Forgets the current request; learned state stays."""

    def act(self, observation: FloatArray) -> int:
        """Returns gamma in tokens for one observation of shape [features]."""

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each row of observations of shape [requests, features]."""

    def learn(self, outcome: StepOutcome) -> None:
        """Learns from the outcome of the last decision; controllers that do not learn ignore it."""


@runtime_checkable
class OnlineLearner(Controller, Protocol):
    """Learns across requests, so that their order matters, while `learns` is True."""

    learns: bool


@runtime_checkable
class InterleavedLearner(OnlineLearner, Protocol):
    """A learner for requests whose steps interleave: the state of one request can be saved and loaded."""

    def save_request(self) -> object:
        """Returns the state of the current request, without what was learned."""

    def load_request(self, request: object) -> None:
        """Continues a saved request."""


@runtime_checkable
class BatchMemory(Protocol):
    """A controller with more memory of a request than the observation, for many requests at once.

    `act_batch` decides for the requests of the last `start`, row by row; `reset` begins a single request.
    """

    def start(self, num_requests: int) -> None:
        """Begins that many requests in place of all others."""

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Remembers a step of each request; `where`, of shape [requests], masks those that made one."""


@runtime_checkable
class Abstainer(Protocol):
    """A controller that may never draft, so that no draft model need be loaded for it."""

    def never_drafts(self, compression: str) -> bool:
        """Whether every decision is 0 at a compression of the target."""


@runtime_checkable
class StoppingController(Controller, Protocol):
    """Also decides after each drafted token whether to draft another one; `act` then returns the most tokens."""

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token, for one observation of `observe_draft`."""

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each row of observations of shape [requests, features]."""
