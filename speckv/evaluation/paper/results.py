# SPDX-License-Identifier: Apache-2.0
"""What the study of the paper's files comes to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.paper.published import Table
from speckv.evaluation.paper.realised import Realised
from speckv.evaluation.paper.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a predictor is fitted and what it may look at.

    Attributes:
        name: Shown in tables.
        causal: Whether it sees the signals of the step before, not of the step itself.
        split: "none" fits it to the tested steps too; "steps" and "prompts" test it on others of these than it saw.
    """

    name: str
    causal: bool
    split: str


CONDITIONS = (
    Condition(name="SpecKV-fast, as published", causal=False, split="none"),
    Condition(name="SpecKV-fast, other steps", causal=False, split="steps"),
    Condition(name="SpecKV-fast, other prompts", causal=False, split="prompts"),
    Condition(name="SpecKV-fast, causal, other prompts", causal=True, split="prompts"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over seeds."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Mean and range."""
        return Spread(mean=float(np.mean(values)), low=float(np.min(values)), high=float(np.max(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """One policy.

    Attributes:
        name: Shown in tables.
        predicted: Tokens a step that the predictor credits it with.
        realised: Sums of tokens, seconds and steps.
        vs_best_fixed: Tokens a second over those of the constant that is best by time, geometric mean.
    """

    name: str
    predicted: Spread | None
    realised: Realised
    vs_best_fixed: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionResult:
    """SpecKV-fast under one condition, over the seeds.

    Attributes:
        condition: Which.
        policy: Its figures.
        predicted_fixed: Tokens a step that the same predictor credits Fixed-4 with.
        correlation: Of predicted and logged acceptance rates in tested steps that have one before them; None if it was
            fitted to them.
        largest_share: Share of steps in which it chooses the largest gamma.
        matched_tokens: Tokens a step where the logged gamma is the chosen one.
        matched_steps: How many such steps there are, on average.
    """

    condition: Condition
    policy: PolicyResult
    predicted_fixed: Spread
    correlation: Spread | None
    largest_share: float
    matched_tokens: float
    matched_steps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything.

    Attributes:
        records: The log.
        seeds: Of splits and networks, the paper's first.
        published: The paper's figures.
        recomputed: The same, with the paper's seed.
        policies: Constants and tables.
        conditions: SpecKV-fast.
        best_by_time: Compression -> gamma of most tokens a second.
        same_step: Signal -> its correlation with the acceptance rate of its own step.
        previous_step: Signal -> with that of the step behind it.
    """

    records: Records
    seeds: tuple[int, ...]
    published: Table
    recomputed: Table
    policies: tuple[PolicyResult, ...]
    conditions: tuple[ConditionResult, ...]
    best_by_time: dict[str, int]
    same_step: dict[str, float]
    previous_step: dict[str, float]
