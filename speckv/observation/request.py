# SPDX-License-Identifier: Apache-2.0
"""One request's past and its observation, number by number.

`History` and `observe` serve many requests at once, and pay dozens of NumPy calls a step for it where there is one.
This is the same arithmetic in the same order on plain numbers, in a buffer that is allocated once. A test holds that
both are equal to the last bit.
"""

from collections.abc import Sequence

import numpy as np

from speckv.observation.draft import LEAST_PROBABILITY, STOPPING_SCHEMA, summarise_draft
from speckv.observation.features import BITS_SCALE, GAMMA_SCALE, LAG_HORIZON, LEFT_HORIZON
from speckv.observation.history import DECAY, PRIOR_ACCEPTANCE, PRIOR_ACCEPTED, PRIOR_TOKENS
from speckv.observation.schema import SCHEMA
from speckv.observation.step import NEUTRAL_SUMMARY
from speckv.types import NUM_SIGNALS, FloatArray

Signals = Sequence[float]
"""Entropy (nats), confidence and margin of one token."""

_NEUTRAL: Sequence[float] = NEUTRAL_SUMMARY.tolist()
_PRIOR = PRIOR_TOKENS * PRIOR_ACCEPTANCE
_STEP = SCHEMA.size
_LOW, _HIGH = STOPPING_SCHEMA.low, STOPPING_SCHEMA.high
_FIRST_DRAFT = summarise_draft(np.zeros((1, 0, NUM_SIGNALS)))[0, 0]
_LEAST_PROBABILITY = np.float32(LEAST_PROBABILITY)


class RequestMemory:
    """What is remembered of one request, and what a controller sees of it.

    Args:
        cost_ratio: One draft pass over one target pass.
        bits_per_weight: Of the target.
        budget: Token budget, the prefill's token included.

    Attributes:
        before: Shape [features]; what `observe` gives, as of the last `render`.
        inside: Shape [features + 8]; what `observe_draft` gives, as of the last `render` and `add_draft`.
        emitted: Tokens of the output so far.
    """

    def __init__(self, *, cost_ratio: float, bits_per_weight: float, budget: int) -> None:
        self.inside: FloatArray = np.zeros(STOPPING_SCHEMA.size, np.float32)
        self.before: FloatArray = self.inside[:_STEP]
        self._draft: FloatArray = self.inside[_STEP:]
        self._low, self._high = _LOW[:_STEP], _HIGH[:_STEP]
        self._static = (cost_ratio, bits_per_weight / BITS_SCALE)
        self._budget = budget
        self._signals = np.zeros(3, np.float32)
        self._drafted: list[Signals] = []
        self.start(0.0, 1.0)

    def start(self, target_entropy: float, target_confidence: float) -> None:
        """Begins right after the prefill, which emitted one token; arguments as for `History.start`."""
        self._tested: Sequence[float] = _NEUTRAL
        self._target = (target_entropy, target_confidence)
        self._accepted_fraction, self._previous_drafted = PRIOR_ACCEPTANCE, 0
        self._decayed_accepted = self._decayed_tested = 0.0
        self._accepted_ema = PRIOR_ACCEPTED
        self.emitted, self._lag = 1, 0
        self._drafted.clear()

    @property
    def tokens_left(self) -> int:
        """Tokens left in the budget."""
        return self._budget - self.emitted

    @property
    def drafted(self) -> Sequence[Signals]:
        """Signals of the tokens drafted since `render`, as float32 knows them."""
        return self._drafted

    def render(self) -> FloatArray:
        """Writes the observation before a step, with nothing drafted yet, and returns `before`."""
        tested = self._tested
        out = self.before
        # One assignment from one tuple: the order is that of `SCHEMA`.
        out[:] = (
            *tested[:5],
            self._accepted_fraction,
            self._previous_drafted / GAMMA_SCALE,
            (self._decayed_accepted + _PRIOR) / (self._decayed_tested + PRIOR_TOKENS),
            self._accepted_ema / GAMMA_SCALE,
            tested[5],
            *self._target,
            *self._static,
            self.emitted / self._budget,
            self.tokens_left / LEFT_HORIZON,
            self._lag / LAG_HORIZON,
        )
        np.maximum(out, self._low, out=out)
        np.minimum(out, self._high, out=out)
        self._draft[:] = _FIRST_DRAFT
        self._drafted.clear()
        self._entropy_sum = self._log_sum = 0.0
        return out

    def add_draft(self, entropy: float, confidence: float, margin: float) -> FloatArray:
        """Takes in one drafted token's signals and returns `inside`."""
        signals, drafted, out = self._signals, self._drafted, self._draft
        signals[:] = entropy, confidence, margin
        entropy, confidence, margin = signals.tolist()
        drafted.append((entropy, confidence, margin))
        self._entropy_sum += entropy
        self._log_sum += float(np.log(np.maximum(signals[1], _LEAST_PROBABILITY)))
        depth = len(drafted)
        out[:] = (
            depth / GAMMA_SCALE,
            *drafted[-1],
            self._entropy_sum / depth,
            max(token[0] for token in drafted),
            min(token[1] for token in drafted),
            self._log_sum,
        )
        np.maximum(out, _LOW[_STEP:], out=out)
        np.minimum(out, _HIGH[_STEP:], out=out)
        return self.inside

    def end_step(
        self,
        *,
        num_drafted: int,
        num_accepted: int,
        num_emitted: int,
        target_entropy: float,
        target_confidence: float,
    ) -> None:
        """Takes one decode step into the past; the draft's signals are those of `add_draft`.

        Args:
            num_drafted: Tokens drafted.
            num_accepted: Of them kept.
            num_emitted: Tokens added to the output.
            target_entropy: At the newest emitted token.
            target_confidence: There.
        """
        num_tested = min(num_accepted + 1, num_drafted)
        if num_drafted:
            self._tested = _summary(self._drafted[:num_tested]) if self._drafted else _NEUTRAL
            self._accepted_fraction = num_accepted / num_drafted
            self._accepted_ema = self._accepted_ema + (1.0 - DECAY) * (num_accepted - self._accepted_ema)
            self._lag = int(num_accepted == num_drafted)
        else:
            # A draft that ran and was dropped has read the newest token; one that did not run fell behind.
            self._lag = 0 if self._drafted else self._lag + 1
        self._target = (target_entropy, target_confidence)
        self._previous_drafted = num_drafted
        self._decayed_accepted = self._decayed_accepted * DECAY + num_accepted
        self._decayed_tested = self._decayed_tested * DECAY + num_tested
        self.emitted += num_emitted


def _summary(tested: Sequence[Signals]) -> Sequence[float]:
    """What `summarise_tested` gives, in the order of `TESTED_SUMMARY`."""
    if not tested:
        return _NEUTRAL
    entropies, confidences, margins = zip(*tested, strict=True)
    number = len(tested)
    return (
        _added(entropies) / number,
        max(entropies),
        _added(confidences) / number,
        min(confidences),
        _added(margins) / number,
        confidences[-1],
    )


def _added(values: Sequence[float]) -> float:
    # One addition after the other: Python's `sum` compensates for rounding since 3.12, and NumPy's `cumsum` does not.
    total = 0.0
    for value in values:
        total += value
    return total
