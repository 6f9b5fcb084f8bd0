# SPDX-License-Identifier: Apache-2.0
"""Controllers on times that are learned while decoding; nothing is calibrated beforehand.

The wrapped controller decides with the present estimate. Around it, this decides what depends on times alone: whether
drafting pays at all, and when to try what is not done, so that a change is noticed.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from speckv.cost.live import Evidence, LiveTimes, TimedStep, TimesPrior
from speckv.cost.times import LiveStepTimes
from speckv.errors import CheckpointError
from speckv.observation import LAG_HORIZON, SCHEMA
from speckv.runtime.state import ControllerState
from speckv.types import BoolArray, FloatArray, IntArray, InterleavedLearner, StepOutcome, StoppingController

Float64 = NDArray[np.float64]
_LAG = SCHEMA.index("draft_lag")

NEVER_BELOW, ALWAYS_ABOVE = 0.97, 1.1
"""Where the best constant gains less or more than this over plain decoding, nothing or always something is drafted."""
FIRST_PROBES = 3
"""Steps of a kind that are tried in any case."""
SURE = 2.0
"""Standard errors by which drafting must differ from what decides, before no more is tried."""
LEAST_WEIGHT, MOST_WEIGHT = 0.25, 12.0
MOST_SHARE = 0.01
"""Of all time that may go into trying."""
STEPS_APART = 8
PROBES_A_REQUEST = 4
DEEPEST_PROBE, DEEP_PROBE = 4, 3
_ALL_SEEN = 2**60
"""Changes that a new request counts as seen, whatever their number."""
_INNER = "inner."


class Timed(StoppingController, Protocol):
    """A token-by-token controller that weighs time."""

    kind: ClassVar[str]
    decides_at_large: ClassVar[bool]
    """Whether `act` itself returns 0 where no draft pays on average."""

    def state(self) -> ControllerState:
        """Returns all that its class needs to make it again."""

    def tokens_at_large(self, row: int) -> Float64:
        """Shape [gamma_max + 1]; mean tokens of a step by drafted tokens, over all requests at one compression."""

    def times_changed(self, row: int) -> None:
        """Computes what depends on the times of one compression."""


@dataclass(slots=True)
class _Request:
    row: int = 0
    lag: int = 0
    drafted: bool = False
    probes_left: int = PROBES_A_REQUEST
    forced: int = 0
    probing: bool = False
    changes: int = 0


class Probes:
    """When to try what is not done: while whether to draft at all could be wrong by `SURE` standard errors."""

    def __init__(self) -> None:
        self.spent_s = self.total_s = 0.0
        self.wait = 0
        self.count = 0

    def choose(self, times: LiveTimes, rates: Float64, gain: float, request: _Request, *, never: bool) -> int | None:
        """Tokens to draft whatever the controller wants, or None; `never`: whether it drafts nothing for now."""
        chosen = self._chosen(times, rates, gain, request, never)
        request.probing = chosen is not None
        self.count += request.probing
        return chosen

    def _chosen(self, times: LiveTimes, rates: Float64, gain: float, request: _Request, never: bool) -> int | None:
        if times.num_changes > request.changes:
            request.changes, request.probes_left = times.num_changes, PROBES_A_REQUEST
        if request.probes_left > 0 and self._wants(times.drafts, gain, times.noise):
            request.probes_left -= 1
            return min(max(int(rates[1:].argmax()) + 1, 2), DEEPEST_PROBE)
        request.probes_left = 0
        if never:
            return None
        if self.wait > 0:
            self.wait -= 1
            return None
        if self._wants(times.plain, gain, times.noise):
            self.wait = STEPS_APART
            return 0
        if times.drafts.ever >= 10 and times.deep.weight < LEAST_WEIGHT and self._may_spend:
            self.wait = STEPS_APART
            return DEEP_PROBE
        return None

    @property
    def _may_spend(self) -> bool:
        return self.spent_s <= MOST_SHARE * self.total_s

    def _wants(self, known: Evidence, gain: float, noise: float) -> bool:
        if not self._may_spend:
            return self.count < FIRST_PROBES
        if known.ever < FIRST_PROBES:
            return True
        needed = (SURE * noise / max(abs(math.log(gain / NEVER_BELOW)), 1e-3)) ** 2
        return known.weight < min(max(needed, LEAST_WEIGHT), MOST_WEIGHT)

    def charge(self, seconds: float, worth_s: float, probing: bool) -> None:
        """Counts a step; `worth_s` is what its tokens take otherwise."""
        self.total_s += seconds
        if probing:
            self.spent_s += max(0.0, seconds - worth_s)


class SelfTimed:
    """A token-by-token controller with times of its own measuring.

    Args:
        inner: Decides on `times`.
    """

    kind = "self_timed"
    charges_decision = True

    def __init__(self, inner: Timed, times: LiveStepTimes, *, name: str = "self-timed") -> None:
        self.inner, self.times, self.name, self.learns = inner, times, name, True
        self._probes = [Probes() for _ in times.compressions]
        self._request = _Request()

    # -- storage ------------------------------------------------------------------------------------------------------

    def state(self) -> ControllerState:
        """Returns the inner controller, and the learned times as the prior of the next session."""
        inner = self.inner.state()
        priors = [live.as_prior() for live in self.times.live]
        arrays = {f"{_INNER}{key}": value for key, value in inner.arrays.items() if not key.startswith("times.")}
        arrays["prior.draft"] = np.array([prior.draft for prior in priors])
        arrays["prior.verify"] = np.array([prior.verify for prior in priors])
        settings = {"inner": self.inner.kind, "settings": dict(inner.settings)}
        return ControllerState(
            settings=settings, arrays=arrays, compressions=self.times.compressions, schema=inner.schema
        )

    @classmethod
    def from_state(cls, state: ControllerState) -> "SelfTimed":
        """Makes the stored controller; its times begin with the stored prior."""
        priors = [
            TimesPrior(draft=float(draft), verify=tuple(map(float, verify)))
            for draft, verify in zip(state.array("prior.draft"), state.array("prior.verify"), strict=True)
        ]
        times = LiveStepTimes.start(state.compressions, priors)
        arrays = {key.removeprefix(_INNER): value for key, value in state.arrays.items() if key.startswith(_INNER)}
        inner_state = ControllerState(settings=state.settings["settings"], arrays=arrays, schema=state.schema)
        return cls(_restored(str(state.settings["inner"]), inner_state.with_times(times), times), times)

    def get_arrays(self) -> dict[str, NDArray[Any]]:
        """Copies what was learned: seconds of steps, and what the inner controller learned."""
        inner = self.inner.get_arrays() if hasattr(self.inner, "get_arrays") else {}
        return {"step_s": self.times.verify_s.copy(), **inner}

    # -- requests -----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begins a request; learned times stay."""
        self.inner.reset()
        self._request = _Request(changes=_ALL_SEEN)

    def save_request(self) -> object:
        """Returns what belongs to the current request."""
        inner = self.inner.save_request() if isinstance(self.inner, InterleavedLearner) else None
        return copy.copy(self._request), inner

    def load_request(self, request: object) -> None:
        """Continues a request that `save_request` returned."""
        own, inner = cast(tuple[_Request, object], request)
        self._request = copy.copy(own)
        if isinstance(self.inner, InterleavedLearner):
            self.inner.load_request(inner)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def act(self, observation: FloatArray) -> int:
        """Returns the most tokens to draft, 0 where no draft pays."""
        request = self._request
        request.row = row = int(self.times.which(observation[np.newaxis])[0])
        request.lag = round(float(observation[_LAG]) * LAG_HORIZON)
        live = self.times.live[row]
        request.changes = min(request.changes, live.num_changes)
        request.forced = 0
        rates = self.inner.tokens_at_large(row) / live.step_s
        gain = float(rates[1:].max() / rates[0])
        wanted = self.inner.act(observation)
        if not self.inner.decides_at_large:
            wanted = 0 if gain < NEVER_BELOW else len(rates) - 1 if gain >= ALWAYS_ABOVE else wanted
        never = not wanted if self.inner.decides_at_large else gain < NEVER_BELOW
        chosen = self._probes[row].choose(live, rates, gain, request, never=never) if self.learns else None
        request.forced = chosen or 0
        return wanted if chosen is None else chosen

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return bool(self._request.forced) or self.inner.go_on(observation)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """As `act` for each row, as if all were this request's."""
        return np.array([self.act(row) for row in observations], np.int64)

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each row, all of the request that was decided on last."""
        return np.array([self.go_on(row) for row in observations], np.bool_)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns from the step's times, and lets the inner controller learn."""
        request = self._request
        drafted = outcome.num_drafted
        if self.learns:
            row = request.row
            tokens = self.inner.tokens_at_large(row)
            best = float((tokens / self.times.verify_s[row]).max())
            self._probes[row].charge(outcome.seconds, float(tokens[drafted]) / best, request.probing)
            self.times.observe(row, _timed(outcome, request))
            self.inner.times_changed(row)
            self.inner.learn(outcome)
        request.drafted |= drafted > 0


def _timed(outcome: StepOutcome, request: _Request) -> TimedStep:
    drafted = outcome.num_drafted
    passes = outcome.verify_s > 0 and (not drafted or outcome.draft_s > 0)
    first = outcome.first_draft_s or outcome.draft_s / max(drafted, 1)
    return TimedStep(
        num_drafted=drafted,
        seconds=outcome.seconds,
        first_draft_s=first if passes and drafted else None,
        more_draft_s=outcome.draft_s - first if passes and drafted else None,
        verify_s=outcome.verify_s if passes else None,
        lag=request.lag,
        first_draft=drafted > 0 and not request.drafted,
    )


def _restored(kind: str, state: ControllerState, times: LiveStepTimes) -> Timed:
    from speckv.agents.bandits.calibrated import CalibratedStopping
    from speckv.agents.survival.controllers import SurvivalStopping

    if kind == SurvivalStopping.kind:
        return SurvivalStopping.from_state(state).with_times(times)
    if kind == CalibratedStopping.kind:
        inner = CalibratedStopping.from_state(state)
        inner.follow(times)
        return inner
    raise CheckpointError(f"Expected a self-timed controller around one that weighs time, got {kind!r}.")
