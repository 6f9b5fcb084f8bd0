# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling follows the target's distribution; a rule that drops tokens by their own confidence does not.

Chi-square tests with a false-alarm rate of 1e-4 each; seeds are fixed, so a passing test always passes.
"""

import numpy as np
import pytest
import torch

from speckv.decoding import DecodeStep, Engine, SamplingConfig
from speckv.decoding.engine import GoOn
from speckv.decoding.sampling import residual, verify_rejection
from speckv.errors import ProbabilityError
from tests.fakes import TableModel

RUNS = 1000
QUANTILE = {1: 15.137, 8: 31.828}
"""Chi-square quantiles at 1 - 1e-4, by degrees of freedom."""


class DroppingEngine(Engine):
    """Drops the last drafted token where the draft gave it less than one half: looks harmless, is not lossless."""

    def step(self, gamma: int, go_on: GoOn | None = None) -> DecodeStep:
        del go_on
        self.begin_step(gamma)
        while self.can_draft:
            self.draft_token()
        draft = self._open.requests[0].open_draft
        probs = draft.proposals[-1].probs if draft.proposals else None
        if probs is not None and probs[0, draft.tokens[-1]] < 0.5:
            del draft.tokens[-1], draft.proposals[-1]
            draft.signals = draft.signals[:-1]
        return self.verify_draft()


def chi_square(counts: np.ndarray, probs: np.ndarray) -> float:
    expected = probs * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def second_tokens(engine: Engine, gamma: int, size: int) -> np.ndarray:
    counts = np.zeros(size)
    for run in range(RUNS):
        engine.start([0], max_new_tokens=6, request=str(run))
        engine.step(gamma)
        counts[engine.tokens[1]] += 1
    return counts


@pytest.mark.slow
def test_rejection_sampling_follows_the_target_and_dropping_by_confidence_does_not() -> None:
    target, draft = TableModel.constant([0.5, 0.5]), TableModel.constant([0.6, 0.4])
    sampling = SamplingConfig(mode="rejection", seed=0)
    probs = np.array([0.5, 0.5])
    right = chi_square(second_tokens(Engine(target, draft, sampling=sampling), 1, 2), probs)
    wrong = chi_square(second_tokens(DroppingEngine(target, draft, sampling=sampling), 1, 2), probs)
    assert right < QUANTILE[1]
    assert wrong > QUANTILE[1]  # it emits token 0 with probability 0.7


@pytest.mark.slow
def test_pairs_of_tokens_follow_the_target_for_a_controller_that_reads_signals() -> None:
    target = TableModel.random(0, vocab=3, scale=1.0)
    engine = Engine(
        target, target.perturbed(1, 1.0), sampling=SamplingConfig(mode="rejection", temperature=0.9, seed=1)
    )
    counts = np.zeros((3, 3))
    for run in range(RUNS):
        engine.start([0, 1], max_new_tokens=6, request=str(run))
        while len(engine.tokens) < 3:
            last = engine.tokens[-1]
            engine.step(1 + last)  # gamma depends on the text so far
        counts[engine.tokens[1], engine.tokens[2]] += 1
    first = torch.softmax(target.table[0, 1] / 0.9, -1)
    probs = torch.zeros(3, 3, dtype=torch.float64)
    for y0 in range(3):
        second = torch.softmax(target.table[1, y0] / 0.9, -1)
        for y1 in range(3):
            probs[y1] += first[y0] * second[y1] * torch.softmax(target.table[y0, y1] / 0.9, -1)
    assert chi_square(counts.ravel(), probs.numpy().ravel()) < QUANTILE[8]


def test_acceptance_plus_residual_is_the_target_exactly() -> None:
    # P(emit x) = min(p, q)(x) + P(reject) * residual(x): no sampling needed.
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        p, q = torch.softmax(torch.randn(2, 9, generator=generator, dtype=torch.float64), -1)
        emitted = torch.minimum(p, q) + (1 - torch.minimum(p, q).sum()) * residual(p, q)
        torch.testing.assert_close(emitted, p, atol=1e-12, rtol=0)


def test_a_token_the_draft_could_not_draw_is_refused() -> None:
    probs = torch.tensor([[1.0, 0.0]])
    with pytest.raises(ProbabilityError, match="draft probability 0"):
        verify_rejection(torch.tensor([1]), probs, probs.repeat(2, 1), generator=torch.Generator())


def test_equal_models_accept_everything() -> None:
    target = TableModel.random(2)
    engine = Engine(target, target, sampling=SamplingConfig(mode="rejection", seed=3))
    engine.start([1, 2], max_new_tokens=30)
    while engine.finish is None:
        outcome = engine.step(4).outcome
        assert outcome.num_accepted == outcome.num_drafted
