# SPDX-License-Identifier: Apache-2.0
"""Controllers on times that are learned while decoding; nothing is calibrated beforehand.

The wrapped controller decides with the present estimate. Around it, this decides what depends on times alone: whether
drafting pays at all, and when to try what is not done, so that a change is noticed.

Any controller that reads its attribute `times` can be wrapped. It may also have

- `times_changed(row)`: computes what depends on the times of one compression;
- `tokens_at_large(row)`: shape [gamma_max + 1], mean tokens of a step by drafted tokens;
- `decides_at_large = False`: leaves it to the wrapper whether drafting pays on average.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from speckv.cost.live import Evidence, LiveTimes, TimedStep, TimesPrior
from speckv.cost.times import NEVER, LiveStepTimes, StepTimes
from speckv.errors import ConfigError
from speckv.observation import LAG_HORIZON, SCHEMA
from speckv.runtime.learned import PolicyController
from speckv.runtime.policy import class_of
from speckv.runtime.state import ControllerState
from speckv.types import GAMMA_MAX, BoolArray, Controller, FloatArray, IntArray, StepOutcome, StoppingController

Float64 = NDArray[np.float64]
_BITS, _LAG, _RATIO = (SCHEMA.index(name) for name in ("bits_per_weight", "draft_lag", "cost_ratio"))

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
MOST_RATIO = 2.0
"""Bound of the observation's cost ratio."""
FIRST_RATE, FIRST_TESTED, DEPTH_TESTED = 0.75, 2.0, 5.0
"""Acceptance rate before any token was tested, its weight, and that of all depths' rate in each depth's."""


class Large(NamedTuple):
    """What a step brings on average, over all requests at one compression.

    Attributes:
        tokens: Shape [gamma_max + 1]; emitted, by drafted tokens.
        rates: The same a second.
        best: The greatest rate.
        gain: The best rate of drafting over that of plain decoding.
    """

    tokens: Float64
    rates: Float64
    best: float
    gain: float


class Survivals:
    """Mean survival of drafts by depth, from tested tokens; for controllers that have no such mean of their own."""

    def __init__(self, gamma_max: int) -> None:
        self.tested, self.accepted = np.zeros(gamma_max), np.zeros(gamma_max)

    def add(self, outcome: StepOutcome) -> None:
        """Adds a step's tested tokens."""
        self.tested[: outcome.num_tested] += 1.0
        self.accepted[: outcome.num_accepted] += 1.0

    def tokens(self) -> Float64:
        """Shape [gamma_max + 1]; mean tokens of a step by drafted tokens."""
        pooled = (self.accepted.sum() + FIRST_RATE * FIRST_TESTED) / (self.tested.sum() + FIRST_TESTED)
        rates = (self.accepted + DEPTH_TESTED * pooled) / (self.tested + DEPTH_TESTED)
        return np.concatenate([[1.0], 1.0 + np.cumsum(np.cumprod(rates))])


class ByRatio:
    """A network that sees time only as the observation's cost ratio, which is replaced by the learned one.

    Train it on many clocks (`env.clocks`), so that it knows what to do at any ratio.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.times = inner, cast(LiveStepTimes, None)
        self.kind = inner.kind
        self._observed: FloatArray = np.zeros(SCHEMA.size, np.float32)

    @staticmethod
    def of(inner: Any) -> "ByRatio":
        """The class that fits."""
        return (StoppingByRatio if isinstance(inner, StoppingController) else ByRatio)(inner)

    def state(self) -> ControllerState:
        """Returns the network."""
        state: ControllerState = self.inner.state()
        return state

    def reset(self) -> None:
        """Forgets the request."""
        self.inner.reset()

    def learn(self, outcome: StepOutcome) -> None:
        """Passes it on."""
        self.inner.learn(outcome)

    def act(self, observation: FloatArray) -> int:
        """Returns the network's choice at the learned ratio."""
        return int(self.inner.act(self._at_ratio(observation)))

    def _at_ratio(self, observation: FloatArray) -> FloatArray:
        changed = observation.copy()
        row = int(self.times.which(observation[np.newaxis])[0])
        changed[_RATIO] = min(self.times.live[row].draft_ratio, MOST_RATIO)
        return changed


class StoppingByRatio(ByRatio):
    """The same of a network that decides token by token."""

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return bool(self.inner.go_on(self._at_ratio(observation)))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each row."""
        return np.array([self.go_on(row) for row in observations], np.bool_)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """As `act` for each row."""
        return np.array([self.act(row) for row in observations], np.int64)


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

    def choose(self, times: LiveTimes, large: Large, request: _Request, *, never: bool) -> int | None:
        """Tokens to draft whatever the controller wants, or None; `never`: whether it drafts nothing for now."""
        chosen = self._chosen(times, large, request, never)
        request.probing = chosen is not None
        self.count += request.probing
        return chosen

    def _chosen(self, times: LiveTimes, large: Large, request: _Request, never: bool) -> int | None:
        if times.num_changes > request.changes:
            request.changes, request.probes_left = times.num_changes, PROBES_A_REQUEST
        if request.probes_left > 0 and self._wants(times.drafts, large.gain, times.noise):
            request.probes_left -= 1
            return min(max(int(large.rates[1:].argmax()) + 1, 2), DEEPEST_PROBE)
        request.probes_left = 0
        if never:
            return None
        if self.wait > 0:
            self.wait -= 1
            return None
        if self._wants(times.plain, large.gain, times.noise):
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
    """A controller with times of its own measuring; made by `self_timed`.

    Args:
        inner: Decides on `times`.
    """

    kind = "self_timed_step"
    charges_decision = True

    def __init__(self, inner: Any, times: LiveStepTimes, *, name: str = "self-timed") -> None:
        self.inner, self.times, self.name, self.learns = inner, times, name, True
        follow = getattr(inner, "follow", None)
        if follow is not None:
            follow(times)
        else:
            inner.times = times
        self._changed = getattr(inner, "times_changed", lambda _: None)
        self._at_large = bool(getattr(inner, "decides_at_large", True))
        depth = times.verify_s.shape[1] - 1
        self._save_inner = getattr(inner, "save_request", lambda: None)
        self._load_inner = getattr(inner, "load_request", lambda _: None)
        self._survivals = [Survivals(depth) for _ in times.compressions]
        self._probes = [Probes() for _ in times.compressions]
        self._large = [self._compute_large(row) for row in range(len(times.compressions))]
        self._rows: dict[float, int] = {}
        self._request = _Request()

    @property
    def learns_acceptance(self) -> bool:
        """Whether the inner controller learns, too; else outcomes may be of several requests, or come late."""
        return bool(getattr(self.inner, "learns", False))

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
        inner = ControllerState(settings=state.settings["settings"], arrays=arrays, schema=state.schema)
        made: Any = class_of(str(state.settings["inner"])).from_state(inner.with_times(times))
        return cls(made if hasattr(made, "times") else ByRatio.of(made), times)

    def with_times(self, times: StepTimes) -> Controller:
        """The inner controller with given times, which decides where drafting pays by the same rule."""
        told: Any = self.inner.with_times(times)
        told.name = self.name
        if not self._at_large:
            for row in range(len(times.compressions)):
                tokens = told.tokens_at_large(row)
                rates = tokens / times.one_step_s(row, np.zeros(SCHEMA.size, np.float32))[: len(tokens)]
                gain = float(rates[1:].max() / rates[0])
                told.set_floor(row, NEVER if gain < NEVER_BELOW else int(gain >= ALWAYS_ABOVE))
        return cast(Controller, told)

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
        """Returns what belongs to the current request, to be changed by its own steps alone."""
        return self._request, self._save_inner()

    def load_request(self, request: object) -> None:
        """Continues a request that `save_request` returned."""
        self._request, inner = cast(tuple[_Request, object], request)
        self._load_inner(inner)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def act(self, observation: FloatArray) -> int:
        """Returns gamma; of a stopping controller the most tokens to draft."""
        request = self._request
        request.row = row = self._row_of(observation)
        request.lag = round(float(observation[_LAG]) * LAG_HORIZON)
        live, large = self.times.live[row], self._large[row]
        request.changes = min(request.changes, live.num_changes)
        request.forced = 0
        wanted = int(self.inner.act(observation))
        never = not wanted if self._at_large else large.gain < NEVER_BELOW
        if not self._at_large:
            wanted = 0 if never else wanted or self._least(large) if large.gain >= ALWAYS_ABOVE else wanted
        chosen = self._probes[row].choose(live, large, request, never=never) if self.learns else None
        request.forced = chosen or 0
        return wanted if chosen is None else chosen

    @staticmethod
    def _least(large: Large) -> int:  # noqa: ARG004
        """Least gamma where drafting pays in any case."""
        return 1

    def _row_of(self, observation: FloatArray) -> int:
        bits = float(observation[_BITS])
        row = self._rows.get(bits)
        if row is None:
            row = self._rows.setdefault(bits, int(self.times.which(observation[np.newaxis])[0]))
        return row

    def act_batch(self, observations: FloatArray) -> IntArray:
        """As `act` for each row, as if all were this request's."""
        return np.array([self.act(row) for row in observations], np.int64)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns from the step's times, and lets the inner controller learn."""
        request = self._request
        drafted = outcome.num_drafted
        if self.learns:
            row = request.row
            large = self._large[row]
            worth_s = float(large.tokens[min(drafted, len(large.tokens) - 1)]) / large.best
            self._probes[row].charge(outcome.seconds, worth_s, request.probing)
            self._survivals[row].add(outcome)
            changed = self.times.observe(row, _timed(outcome, request))
            if changed:
                self._changed(row)
            self.inner.learn(outcome)
            if changed or self.learns_acceptance:
                self._large[row] = self._compute_large(row)
        request.drafted |= drafted > 0

    def _compute_large(self, row: int) -> Large:
        own = getattr(self.inner, "tokens_at_large", None)
        tokens: Float64 = own(row) if own is not None else self._survivals[row].tokens()
        rates: Float64 = tokens / self.times.verify_s[row, : len(tokens)]
        drafting = float(rates[1:].max())
        plain = float(rates[0])
        return Large(tokens, rates, max(drafting, plain), drafting / plain)


class SelfTimedStopping(SelfTimed):
    """The same of a controller that decides token by token."""

    kind = "self_timed"

    @property
    def gamma_ahead(self) -> int:
        """The best gamma by what is known before the step, for use where signals of drafts are missing."""
        return self._request.forced or max(int(getattr(self.inner, "gamma_ahead", 1)), 1)

    @staticmethod
    def _least(large: Large) -> int:
        return len(large.tokens) - 1

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return bool(self._request.forced) or bool(self.inner.go_on(observation))

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """As `go_on` for each row, all of the request that was decided on last."""
        return np.array([self.go_on(row) for row in observations], np.bool_)


def self_timed(inner: Any, compressions: Sequence[str], *, gamma_max: int = GAMMA_MAX, name: str) -> SelfTimed:
    """Wraps a controller that reads `times`; nothing is known of times beforehand."""
    times = LiveStepTimes.start(compressions, [TimesPrior.flat(gamma_max)] * len(compressions))
    return (SelfTimedStopping if isinstance(inner, StoppingController) else SelfTimed)(inner, times, name=name)


def untold(controller: Controller, compressions: Sequence[str], *, gamma_max: int = GAMMA_MAX) -> Controller:
    """The controller without the times that it was made for: it learns them; one that weighs no time stays as it is.

    Raises:
        ConfigError: for one that cannot do without them.
    """
    if isinstance(controller, PolicyController):
        return self_timed(ByRatio.of(controller), compressions, gamma_max=gamma_max, name=controller.name)
    if isinstance(controller, SelfTimed) or not hasattr(controller, "times"):
        return controller
    inner: Any = copy.copy(controller)
    if hasattr(inner, "set_floor"):  # a copy of its own, whose floors do not come from a cost table
        inner = inner.with_times(inner.times)
        for row in range(len(inner.times.compressions)):
            inner.set_floor(row, 0)
    try:
        return self_timed(inner, compressions, gamma_max=gamma_max, name=controller.name)
    except AttributeError as error:
        raise ConfigError(
            f"Expected a controller that can learn times for cost.known=false, got {controller.name!r}, whose fit "
            "depends on the cost table. Leave it out, or set cost.known=true."
        ) from error


def _timed(outcome: StepOutcome, request: _Request) -> TimedStep:
    drafted = outcome.num_drafted
    passes = outcome.verify_s > 0 and (not drafted or outcome.draft_s >= outcome.first_draft_s > 0)
    first = outcome.first_draft_s
    return TimedStep(
        num_drafted=drafted,
        seconds=outcome.seconds,
        first_draft_s=first if passes and drafted else None,
        more_draft_s=outcome.draft_s - first if passes and drafted else None,
        verify_s=outcome.verify_s if passes else None,
        lag=request.lag,
        first_draft=drafted > 0 and not request.drafted,
    )
