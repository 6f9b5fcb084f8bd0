# SPDX-License-Identifier: Apache-2.0
"""Renders the past as features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.observation.history import PRIOR_ACCEPTANCE, PRIOR_TOKENS, History
from speckv.observation.schema import SCHEMA
from speckv.types import BITS_PER_WEIGHT, FloatArray, IntArray

GAMMA_SCALE = 16.0
"""Drafted and accepted lengths are observed in units of this many tokens."""

BITS_SCALE = 16.0
LEFT_HORIZON = 64.0
LAG_HORIZON = 16.0

_LOW, _HIGH = SCHEMA.low, SCHEMA.high
_COLUMN = {name: place for place, name in enumerate(SCHEMA.names)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticContext:
    """What does not change while a request runs.

    Attributes:
        cost_ratio: Shape [N]; one draft pass over one target pass.
        bits_per_weight: Shape [N]; of the target, in bits.
        budget: Shape [N]; token budget, the prefill's token included.
    """

    cost_ratio: NDArray[np.float64]
    bits_per_weight: NDArray[np.float64]
    budget: IntArray

    @staticmethod
    def of(compressions: Sequence[str], cost_ratios: Mapping[str, float], budgets: Sequence[int]) -> "StaticContext":
        """Builds the context of some requests.

        Args:
            compressions: One name a request.
            cost_ratios: Compression -> cost ratio.
            budgets: One token budget a request.
        """
        return StaticContext(
            cost_ratio=np.array([cost_ratios[name] for name in compressions], np.float64),
            bits_per_weight=np.array([BITS_PER_WEIGHT[name] for name in compressions], np.float64),
            budget=np.array(budgets, np.int64),
        )


def observe(history: History, static: StaticContext) -> FloatArray:
    """Renders the past of each request as the features that `SCHEMA` lists.

    Args:
        history: The past.
        static: What does not change.

    Returns:
        Shape [N, features]; within the schema's bounds.

    >>> static = StaticContext.of(["nf4"], {"nf4": 0.3}, [100])
    >>> features = observe(History.start(1, target_entropy=0.5, target_confidence=0.9), static)
    >>> dict(zip(SCHEMA.names, features[0].round(2).tolist()))["position"]
    0.009999999776482582
    """
    out = np.empty((len(history.emitted), len(_LOW)), np.float32)
    out[:, 0:5] = history.tested[:, 0:5]
    out[:, _COLUMN["draft_confidence_last"]] = history.tested[:, 5]
    target = _COLUMN["target_entropy"]
    out[:, target : target + 2] = history.target
    out[:, _COLUMN["accepted_fraction"]] = history.accepted_fraction
    out[:, _COLUMN["previous_gamma"]] = history.previous_drafted / GAMMA_SCALE
    accepted = history.decayed_accepted + PRIOR_TOKENS * PRIOR_ACCEPTANCE
    out[:, _COLUMN["acceptance_ema"]] = accepted / (history.decayed_tested + PRIOR_TOKENS)
    out[:, _COLUMN["accepted_ema"]] = history.accepted_ema / GAMMA_SCALE
    out[:, _COLUMN["cost_ratio"]] = static.cost_ratio
    out[:, _COLUMN["bits_per_weight"]] = static.bits_per_weight / BITS_SCALE
    out[:, _COLUMN["position"]] = history.emitted / static.budget
    out[:, _COLUMN["tokens_left"]] = (static.budget - history.emitted) / LEFT_HORIZON
    out[:, _COLUMN["draft_lag"]] = history.draft_lag / LAG_HORIZON
    # Clips tokens left and draft lag at their horizons as well.
    np.minimum(np.maximum(out, _LOW, out=out), _HIGH, out=out)
    return out
