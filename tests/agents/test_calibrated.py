# SPDX-License-Identifier: Apache-2.0
"""The calibrated stop rule against sums done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from speckv.agents.bandits.calibrated import CalibratedSettings, CalibratedStopping, logit, refit
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError
from speckv.observation import SCHEMA, STOPPING_SCHEMA
from speckv.types import StepOutcome
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table, outcome

TIMES = StepTimes.of(make_cost_table(controller_s=0.0), ["fp16"])


def observation(depth: int, confidence: float) -> np.ndarray:
    row = np.zeros(STOPPING_SCHEMA.size, np.float32)
    row[STOPPING_SCHEMA.index("bits_per_weight")] = 1.0
    row[STOPPING_SCHEMA.index("depth")] = depth / 16
    row[STOPPING_SCHEMA.index("token_confidence")] = confidence
    return row


def told(confidences: list[float], num_accepted: int) -> StepOutcome:
    signals = np.zeros((len(confidences), 3), np.float32)
    signals[:, 1] = confidences
    return replace(outcome(len(confidences), num_accepted), draft_signals=signals)


def test_a_refit_is_one_damped_newton_step() -> None:
    """50 tokens at depth 0 with logit 0, 40 accepted, from sigmoid(0) = 0.5.

    Gradient 40 - 25 = 15, curvature 50 * 0.25 + 0.001 * 50 = 12.55, damped by 50 / (50 + 50).
    """
    accepted = np.arange(50) < 40
    new = refit(np.array([0.5, 0.0, 0.0]), np.zeros(50), np.zeros(50, np.int64), accepted, 1e-3, 50.0)
    assert new[1] == pytest.approx(0.5 * 15 / 12.55)
    assert new[0] == pytest.approx(0.5)
    assert new[2] == pytest.approx(0.0)


def test_refits_come_to_the_frequencies() -> None:
    rng = np.random.default_rng(0)
    logits, depths = rng.normal(1.0, 1.0, 4000), rng.integers(0, 2, 4000)
    chance = 1 / (1 + np.exp(-(0.8 * logits + np.array([0.3, -0.4])[depths])))
    accepted = rng.random(4000) < chance
    weights = np.array([0.5, -0.2, -0.2])
    for _ in range(10):
        weights = refit(weights, logits, depths, accepted, 1e-6, 50.0)
    # Standard errors are below 0.06: five of them, for three figures, fail once in a million seeds.
    assert weights == pytest.approx([0.8, 0.3, -0.4], abs=0.3)


def test_it_goes_on_while_a_token_is_worth_its_time() -> None:
    """At fp16 a step of g drafts takes 8 + 1.25 g; with every chance one half, g = 2 is best: 1.75 / 10.5 = 1 / 6.

    One token more costs 1.25 s, so it has to be worth 0.2083 tokens: 0.25 behind one token is. Behind two, a third one
    is worth 0.125, a third and a fourth 0.1875 where 0.4167 would be needed, and so on.
    """
    rule = CalibratedStopping(shipped(CalibratedSettings, slope=0.0, offset=0.0, price_scale=1.0), TIMES, 0)
    rule.reset()
    assert rule.act(observation(0, 0.5)[: SCHEMA.size]) == 16
    assert rule.go_on(observation(1, 0.9))
    assert not rule.go_on(observation(2, 0.9))


def test_it_looks_further_ahead_than_one_token() -> None:
    """Verifying one drafted token is free, a second one dear, further ones free again: only several are worth it.

    Every chance is 0.8. Behind one token the next is worth 0.64 tokens, the next three 0.64 + 0.512 + 0.4096 = 1.56.
    """
    verify = np.full((1, 17), 13.0)
    verify[0, :3] = [8.0, 8.0, 13.0]
    times = replace(TIMES, verify_s=verify)
    chance = float(logit(np.array([0.8]))[0])
    rule = CalibratedStopping(
        shipped(CalibratedSettings, gamma_max=4, slope=0.0, offset=chance, price_scale=1.0), times, 0
    )
    rule.reset()
    rule.act(observation(0, 0.5)[: SCHEMA.size])
    # g = 1: 1.8 / 9 = 0.2; g = 4: 3.36 / 17 = 0.198. One more costs 6 s, 1.2 tokens; three more 8 s, 1.6.
    assert not rule.go_on(observation(1, 0.5))
    cheaper = replace(TIMES, verify_s=np.minimum(verify, 12.0))
    rule = CalibratedStopping(
        shipped(CalibratedSettings, gamma_max=4, slope=0.0, offset=chance, price_scale=1.0), cheaper, 0
    )
    rule.reset()
    rule.act(observation(0, 0.5)[: SCHEMA.size])
    # g = 4: 3.3616 / 16 = 0.2101. One more costs 5 s, 1.05 tokens; three more 7 s, 1.47 of 1.56.
    assert rule.go_on(observation(1, 0.5))


def test_it_decodes_plainly_where_no_draft_pays() -> None:
    """With chances of 1 in 10 a draft of one gives 1.1 tokens in 9.25 s; plain decoding one in 8 s."""
    rule = CalibratedStopping(shipped(CalibratedSettings, slope=0.0, offset=float(logit(np.array([0.1]))[0])), TIMES, 0)
    rule.reset()
    assert rule.act(observation(0, 0.5)[: SCHEMA.size]) == 16  # it has seen nothing yet
    rule.num_steps[0] = rule.settings.refit_every
    assert rule.act(observation(0, 0.5)[: SCHEMA.size]) == 0


def test_it_learns_that_confidence_misleads() -> None:
    """The draft is sure of everything and always wrong: at first it drafts, after a refit it does not."""
    rule = CalibratedStopping(shipped(CalibratedSettings, refit_every=50), TIMES, 0)
    rule.reset()
    before = observation(0, 0.99)[: SCHEMA.size]
    assert rule.act(before) == 16
    for _ in range(300):
        if rule.act(before):
            rule.learn(told([0.99, 0.99], 0))
    assert rule.act(before) == 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="gamma_max from 1 to 16"):
        shipped(CalibratedSettings, gamma_max=0)
    with pytest.raises(ConfigError, match="ridge above 0"):
        shipped(CalibratedSettings, ridge=0.0)
