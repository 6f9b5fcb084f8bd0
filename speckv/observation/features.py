# SPDX-License-Identifier: Apache-2.0
"""Every feature of an observation and how it is computed; to add one, add an entry to `FEATURES`.

Positions follow from the entries, and stored policies find their features by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speckv.errors import ConfigError, nearest
from speckv.observation.schema import ObservationField, ObservationSchema
from speckv.types import NUM_SIGNALS, BoolArray, FloatArray, IntArray

GAMMA_SCALE = 16.0
"""Drafted and accepted lengths are observed in units of this many tokens."""

BITS_SCALE = 16.0
LEFT_HORIZON = 64.0
LAG_HORIZON = 16.0

PRIOR_ACCEPTANCE = 0.7
"""Acceptance rate that a request is taken to have before its first step."""

PRIOR_TOKENS = 4.0
"""Tokens, accepted at that rate, that the acceptance average always includes: old evidence fades towards the prior."""

_PRIOR = PRIOR_TOKENS * PRIOR_ACCEPTANCE

_LEAST_PROBABILITY = 1e-9
"""Before a logarithm is taken."""
_LEAST_FLOAT32 = float(np.float32(_LEAST_PROBABILITY))


class FeatureSource(NamedTuple):
    """How a feature is computed; `value` works on numbers of one request and on arrays of many alike.

    Attributes:
        reads: "tested": the tokens of the last drafting step that the target tested. "past": the request's history and
            static context. "draft": the tokens drafted so far in this step.
        group: Features of one group can be hidden together; "" for none.
        value: Reads a `DraftPrefix`, or for "past" the history and the static context.
        first: Value where no token was tested or drafted.
    """

    reads: str
    group: str
    value: Callable[..., Any]
    first: float = 0.0


def _field(name: str, low: float, high: float, description: str, unit: str = "1") -> ObservationField:
    return ObservationField(name=name, unit=unit, low=float(low), high=float(high), description=description)


def _tested(value: Callable[["DraftPrefix"], Any], first: float = 0.0) -> FeatureSource:
    return FeatureSource("tested", "past_signals", value, first)


def _past(group: str, value: Callable[[Any, Any], Any]) -> FeatureSource:
    return FeatureSource("past", group, value)


def _draft(group: str, value: Callable[["DraftPrefix"], Any], first: float = 0.0) -> FeatureSource:
    return FeatureSource("draft", group, value, first)


_PREVIOUS = "over the tested tokens of the last drafting step"

FEATURES: Mapping[ObservationField, FeatureSource] = {
    _field("draft_entropy_mean", 0, 12, f"Draft's mean entropy {_PREVIOUS}; 0 at first", "nats"): _tested(
        lambda draft: draft.entropy_sum / draft.depth
    ),
    _field("draft_entropy_max", 0, 12, f"Draft's greatest entropy {_PREVIOUS}; 0 at first", "nats"): _tested(
        lambda draft: draft.entropy_max
    ),
    _field("draft_confidence_mean", 0, 1, f"Draft's mean top-1 probability {_PREVIOUS}; 1 at first"): _tested(
        lambda draft: draft.confidence_sum / draft.depth, first=1
    ),
    _field("draft_confidence_min", 0, 1, f"Draft's least top-1 probability {_PREVIOUS}; 1 at first"): _tested(
        lambda draft: draft.confidence_min, first=1
    ),
    _field("draft_margin_mean", 0, 1, f"Draft's mean top-1 minus top-2 probability {_PREVIOUS}; 1 at first"): _tested(
        lambda draft: draft.margin_sum / draft.depth, first=1
    ),
    _field("accepted_fraction", 0, 1, "Accepted over drafted in the last drafting step; 0.7 at first"): _past(
        "acceptance", lambda past, _: past.accepted_fraction
    ),
    _field("previous_gamma", 0, 1, "Tokens drafted in the previous step, over 16; 0 at first"): _past(
        "acceptance", lambda past, _: past.previous_drafted / GAMMA_SCALE
    ),
    _field(
        "acceptance_ema", 0, 1, "Accepted over tested tokens, both decayed by 0.9 a step; prior 4 tokens at 0.7"
    ): _past("acceptance", lambda past, _: (past.decayed_accepted + _PRIOR) / (past.decayed_tested + PRIOR_TOKENS)),
    _field(
        "accepted_ema", 0, 1, "Mean accepted length of drafting steps, decayed by 0.9 each, over 16; 7/3 at first"
    ): _past("acceptance", lambda past, _: past.accepted_ema / GAMMA_SCALE),
    _field("draft_confidence_last", 0, 1, "Draft's top-1 probability at the last tested token; 1 at first"): _tested(
        lambda draft: draft.confidence, first=1
    ),
    _field("target_entropy", 0, 12, "Target's entropy at the newest emitted token", "nats"): _past(
        "target", lambda past, _: past.target_entropy
    ),
    _field("target_confidence", 0, 1, "Target's top-1 probability at the newest emitted token"): _past(
        "target", lambda past, _: past.target_confidence
    ),
    _field("cost_ratio", 0, 2, "One draft pass over one target pass"): _past(
        "compression", lambda _, static: static.cost_ratio
    ),
    _field("bits_per_weight", 0, 1, "Bits of one weight of the target, over 16"): _past(
        "compression", lambda _, static: static.bits_per_weight / BITS_SCALE
    ),
    _field("position", 0, 1, "Emitted tokens over the token budget"): _past(
        "place", lambda past, static: past.emitted / static.budget
    ),
    _field("tokens_left", 0, 1, "Tokens left in the budget, at most 64, over 64"): _past(
        "place", lambda past, static: (static.budget - past.emitted) / LEFT_HORIZON
    ),
    _field("draft_lag", 0, 1, "Emitted tokens the draft has not read, the newest left out, at most 16, over 16"): _past(
        "place", lambda past, _: past.draft_lag / LAG_HORIZON
    ),
    _field("depth", 0, 1, "Tokens drafted so far in this step, over 16"): _draft(
        "", lambda draft: draft.depth / GAMMA_SCALE
    ),
    _field("token_entropy", 0, 12, "Draft's entropy at the newest drafted token; 0 before one", "nats"): _draft(
        "newest_token", lambda draft: draft.entropy
    ),
    _field("token_confidence", 0, 1, "Draft's top-1 probability there; 1 before one"): _draft(
        "newest_token", lambda draft: draft.confidence, first=1
    ),
    _field("token_margin", 0, 1, "Draft's top-1 minus top-2 probability there; 1 before one"): _draft(
        "newest_token", lambda draft: draft.margin, first=1
    ),
    _field("step_entropy_mean", 0, 12, "Draft's mean entropy over this step's tokens; 0 at first", "nats"): _draft(
        "this_step", lambda draft: draft.entropy_sum / draft.depth
    ),
    _field("step_entropy_max", 0, 12, "Draft's greatest entropy over them; 0 at first", "nats"): _draft(
        "this_step", lambda draft: draft.entropy_max
    ),
    _field("step_confidence_min", 0, 1, "Draft's least top-1 probability over them; 1 at first"): _draft(
        "this_step", lambda draft: draft.confidence_min, first=1
    ),
    _field(
        "step_log_confidence", -12, 0, "Sum of the logarithms of its top-1 probabilities; 0 at first", "nats"
    ): _draft("this_step", lambda draft: draft.log_confidence_sum),
}
"""All features. Those before a step come first in an observation, in this order, then those that read the draft."""

SCHEMA = ObservationSchema(version=1, fields=tuple(f for f, source in FEATURES.items() if source.reads != "draft"))
"""What `observe` computes before a step."""

STOPPING_SCHEMA = ObservationSchema(
    version=SCHEMA.version,
    fields=(*SCHEMA.fields, *(f for f, source in FEATURES.items() if source.reads == "draft")),
)
"""What `observe_draft` computes inside a step: the features of the step's start, then those of the draft so far."""

TESTED_FEATURES = {f.name: source for f, source in FEATURES.items() if source.reads == "tested"}
PAST_FEATURES = {f.name: source for f, source in FEATURES.items() if source.reads == "past"}
DRAFT_FEATURES = {f.name: source for f, source in FEATURES.items() if source.reads == "draft"}
FIRST_TESTED = np.array([source.first for source in TESTED_FEATURES.values()], np.float32)
FIRST_DRAFT = np.array([source.first for source in DRAFT_FEATURES.values()], np.float32)

_DEPTH = STOPPING_SCHEMA.index("depth")
_FIRST_SIGNAL = STOPPING_SCHEMA.index("token_entropy") - SCHEMA.size
DRAFT_SIGNALS = slice(_FIRST_SIGNAL, _FIRST_SIGNAL + NUM_SIGNALS)
"""Columns of `summarise_draft` with the newest token's own signals, in the order of `StepOutcome.draft_signals`."""

DRAFT_LOW, DRAFT_HIGH = STOPPING_SCHEMA.low[SCHEMA.size :], STOPPING_SCHEMA.high[SCHEMA.size :]


class DraftPrefix(NamedTuple):
    """The first tokens of one draft: the newest one's signals, and sums and extremes over all of them."""

    depth: int
    entropy: float
    confidence: float
    margin: float
    entropy_sum: float
    entropy_max: float
    confidence_sum: float
    confidence_min: float
    margin_sum: float
    log_confidence_sum: float

    def extended(self, signals: Sequence[float]) -> "DraftPrefix":
        """One prefix with a token more, given its entropy, confidence and margin as float32 holds them."""
        entropy, confidence, margin = signals
        log_confidence = float(np.log(np.float32(max(confidence, _LEAST_FLOAT32))))
        return DraftPrefix(
            self.depth + 1,
            entropy,
            confidence,
            margin,
            self.entropy_sum + entropy,
            max(self.entropy_max, entropy),
            self.confidence_sum + confidence,
            min(self.confidence_min, confidence),
            self.margin_sum + margin,
            self.log_confidence_sum + log_confidence,
        )


NO_DRAFT = DraftPrefix(0, 0.0, 1.0, 1.0, 0.0, -np.inf, 0.0, np.inf, 0.0, 0.0)


class _AllPrefixes:
    """Sums accumulate one addition after the other, so that none depends on how many tokens follow."""

    def __init__(self, signals: NDArray[np.floating]) -> None:
        self.depth = np.arange(1, signals.shape[1] + 1)
        self.entropy, self.confidence, self.margin = signals[..., 0], signals[..., 1], signals[..., 2]

    @property
    def entropy_sum(self) -> NDArray[np.float64]:
        return np.add.accumulate(self.entropy, axis=1, dtype=np.float64)

    @property
    def entropy_max(self) -> NDArray[np.floating]:
        return np.maximum.accumulate(self.entropy, axis=1)

    @property
    def confidence_sum(self) -> NDArray[np.float64]:
        return np.add.accumulate(self.confidence, axis=1, dtype=np.float64)

    @property
    def confidence_min(self) -> NDArray[np.floating]:
        return np.minimum.accumulate(self.confidence, axis=1)

    @property
    def margin_sum(self) -> NDArray[np.float64]:
        return np.add.accumulate(self.margin, axis=1, dtype=np.float64)

    @property
    def log_confidence_sum(self) -> NDArray[np.float64]:
        logs = np.log(np.maximum(self.confidence, _LEAST_PROBABILITY))
        return np.add.accumulate(logs, axis=1, dtype=np.float64)


def running_summary(signals: NDArray[np.floating]) -> FloatArray:
    """`TESTED_FEATURES` of every prefix of a draft; arguments and result as for `summarise_draft`, but not clipped.

    >>> signals = np.array([[[1.0, 0.8, 0.5], [2.0, 0.25, 0.0]]])
    >>> running_summary(signals)[0, 2].tolist()
    [1.5, 2.0, 0.5249999761581421, 0.25, 0.25, 0.25]
    """
    return _of_prefixes(TESTED_FEATURES, FIRST_TESTED, signals)


def summarise_tested(signals: FloatArray, num_tested: int) -> FloatArray:
    """`TESTED_FEATURES` of one step whose draft has signals of shape [depth, 3]: a row of `running_summary`."""
    prefix = NO_DRAFT
    for token in signals[:num_tested].tolist():
        prefix = prefix.extended(token)
    sources = TESTED_FEATURES.values()
    return np.array([source.value(prefix) if num_tested else source.first for source in sources], np.float32)


def summarise_draft(signals: NDArray[np.floating]) -> FloatArray:
    """`DRAFT_FEATURES` of every prefix of drafts with signals of shape [N, depth, 3]; shape [N, depth + 1, features].

    Row k is that of the first k tokens; values are clipped to their bounds.

    >>> signals = np.array([[[1.0, 0.5, 0.25], [2.0, 0.25, 0.0]]])
    >>> summarise_draft(signals)[0, :, :4].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0625, 1.0, 0.5, 0.25], [0.125, 2.0, 0.25, 0.0]]
    """
    out = _of_prefixes(DRAFT_FEATURES, FIRST_DRAFT, signals)
    return np.minimum(np.maximum(out, DRAFT_LOW, out=out), DRAFT_HIGH, out=out)


def _of_prefixes(features: Mapping[str, FeatureSource], first: FloatArray, signals: NDArray[np.floating]) -> FloatArray:
    number, depth, _ = signals.shape
    out = np.empty((number, depth + 1, len(features)), np.float32)
    out[:, 0] = first
    prefixes = _AllPrefixes(signals)
    rows = out[:, 1:]
    for column, source in enumerate(features.values()):
        rows[..., column] = source.value(prefixes)
    return out


def observe_draft(observations: FloatArray, draft: FloatArray) -> FloatArray:
    """Joins the features of a step's start, from `observe`, with a row of `summarise_draft` each."""
    return np.concatenate([observations, draft], axis=1)


def drafted_so_far(observations: FloatArray) -> IntArray:
    """Tokens drafted in the present step, of shape [...], from observations of shape [..., features]."""
    depth: IntArray = np.rint(observations[..., _DEPTH] * GAMMA_SCALE).astype(np.int64)
    return depth


GROUPS: Mapping[str, tuple[str, ...]] = {
    group: tuple(f.name for f, source in FEATURES.items() if source.group == group)
    for group in dict.fromkeys(source.group for source in FEATURES.values() if source.group)
}
"""Group -> its features. The depth of a draft is in none: without it no choice inside a step makes sense."""

HIDDEN_STD = np.float32(1e30)
"""Divides a hidden feature: the rest is too small to change a sum in single precision."""


def hidden_columns(hide: Sequence[str]) -> BoolArray:
    """Mask of the features of `STOPPING_SCHEMA` in named groups or named themselves; a ConfigError for unknown names.

    >>> int(hidden_columns(["target", "position"]).sum())
    3
    """
    names = {name for word in hide for name in GROUPS.get(word, (word,))}
    for name in sorted(names - set(STOPPING_SCHEMA.names)):
        known = [*GROUPS, *STOPPING_SCHEMA.names]
        raise ConfigError(f"Expected groups or features of {known} in env.hide, got {name!r}.{nearest(name, known)}")
    return np.array([name in names for name in STOPPING_SCHEMA.names])


def hide_from(mean: FloatArray, std: FloatArray, hidden: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation, of shape [features], that normalise hidden features to 0."""
    columns = hidden[: len(mean)]
    return np.where(columns, np.float32(0), mean), np.where(columns, HIDDEN_STD, std)
