# SPDX-License-Identifier: Apache-2.0
"""A table against live runs on a clock that the test holds: right tables fit, wrong ones are off by what they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from speckv.cost import CostEntry, CostFit, CostTable
from speckv.decoding import Engine, RequestContext, generate
from speckv.errors import ConfigError, CostTableError
from speckv.profiling.calibrate import (
    CheckPlan,
    check_engine,
    encode_prompts,
    measured_seconds,
    predicted_seconds,
    step_counts,
)
from speckv.profiling.timing import RandomGamma
from speckv.runtime.constant import ConstantGamma
from tests.fakes import TableModel
from tests.fakes_clock import FakeClock, TimedModel

PROMPTS = [[1, 2, 3], [4, 5], [6, 1, 2, 3, 4]]
PLAN = CheckPlan(prompts=("x",), gammas=(0, 2, 5), max_new_tokens=24)
CONTEXT = RequestContext(compression="fp16", cost_ratio=0.25)


def timed_engine(clock: FakeClock, slope: float = 0.0) -> Engine:
    """Verify 8 s and 0.25 s a further token, draft 2 s and 0.5 s a further token, `slope` s a context token."""
    target = TableModel.random(3)
    return Engine(
        TimedModel(target, clock, lambda width, context: 8.0 + 0.25 * (width - 1) + slope * context),
        TimedModel(target.perturbed(4, 1.0), clock, lambda width, context: 2.0 + 0.5 * (width - 1) + slope * context),
        clock=clock,
    )


def table(factor: float = 1.0, slope: float = 0.0, controller_s: float = 0.0) -> CostTable:
    entry = CostEntry(
        compression="fp16",
        dtype="float64",
        reference_context=0,
        draft_widths=(1, 17),
        draft_s=(factor * 2.0, factor * 10.0),
        draft_context_slope_s=slope,
        verify_widths=(1, 17),
        verify_s=(factor * 8.0, factor * 12.0),
        verify_context_slope_s=slope,
    )
    return CostTable(name="toy", kind="measured", machine={}, entries={"fp16": entry}, controller_s=controller_s)


def check(prompts: Sequence[Sequence[int]] = PROMPTS, **settings: float) -> CostFit:
    return check_engine(table(**settings), "fp16", timed_engine(FakeClock()), prompts, PLAN)


def test_passes_are_captured_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = timed_engine(FakeClock()), list[int]()
    monkeypatch.setattr(engine, "capture_ahead", asked.append)
    check_engine(table(), "fp16", engine, PROMPTS, PLAN)
    assert asked == [5 + PLAN.max_new_tokens]


def test_the_right_table_fits() -> None:
    fit = check()
    assert fit.error == pytest.approx(0.0, abs=1e-12)
    assert fit.spread == pytest.approx(0.0, abs=1e-12)
    assert (fit.prompts, fit.runs) == (3, 12)
    # Each run ends at its budget, and prefill's token is in no decode step.
    assert fit.tokens == 12 * 23


@pytest.mark.parametrize("factor", [1.2, 0.8, 1.05])
def test_a_wrong_table_is_off_by_what_it_is_wrong(factor: float) -> None:
    fit = check(factor=factor)
    assert fit.error == pytest.approx(factor - 1)
    judged = replace(table(factor), fit={"fp16": fit})
    if factor == 1.05:
        judged.require_publishable()
    else:
        with pytest.raises(CostTableError, match="off by 20 %"):
            judged.require_publishable()


def test_contexts_are_those_of_the_steps() -> None:
    slope = 1 / 64
    engine = timed_engine(FakeClock(), slope)
    fit = check_engine(table(slope=slope), "fp16", engine, PROMPTS, PLAN)
    # The table gives all passes of a step one context; the later ones have a few tokens more.
    assert abs(fit.error) < 0.01
    assert check_engine(table(), "fp16", engine, PROMPTS, PLAN).error < -0.02


def test_counts_are_the_engines() -> None:
    engine, lags, contexts = timed_engine(FakeClock()), [], []
    prompt = PROMPTS[0]
    engine.start(prompt, max_new_tokens=30)
    steps, gammas = [], RandomGamma(4, seed=1)
    while engine.finish is None:
        lags.append(engine.draft_lag)
        contexts.append(len(prompt) + len(engine.tokens))
        steps.append(engine.step(gammas.act(np.zeros(1, np.float32))))
    drafted, found_lags, found_contexts = step_counts(len(prompt), steps)
    assert drafted.tolist() == [step.outcome.num_drafted for step in steps]
    assert found_lags.tolist() == lags
    assert max(lags) > 1
    assert found_contexts.tolist() == contexts


def test_a_decision_is_charged_to_who_makes_one() -> None:
    class Deciding(ConstantGamma):
        charges_decision = True

    times = table(controller_s=0.5)
    engine = timed_engine(FakeClock())
    free, deciding = ConstantGamma(2), Deciding(2)
    runs = [generate(engine, PROMPTS[0], c, context=CONTEXT, max_new_tokens=20) for c in (free, deciding)]
    without, charged = (
        predicted_seconds(times, "fp16", 3, run, c) for run, c in zip(runs, (free, deciding), strict=True)
    )
    assert charged == pytest.approx(without + 0.5 * len(runs[1].steps))
    # Likewise measured: observing takes real time, which the fake clock leaves out.
    assert measured_seconds(runs[0], free) == pytest.approx(without)
    assert measured_seconds(runs[1], deciding) == runs[1].decode_s > without


def test_random_schedules_reach_every_gamma() -> None:
    drawn = RandomGamma(3, seed=0).act_batch(np.zeros((200, 1), np.float32))
    assert sorted(set(drawn.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "at least one prompt"),
        ({"max_new_tokens": 1}, "check_tokens of at least 2, got 1"),
        ({"gammas": (0, 17)}, r"check_gammas from 0 to 16, got \[0, 17\]"),
    ],
)
def test_wrong_plans(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAN, **settings)  # type: ignore[arg-type]


def test_prompts_that_do_not_fit_are_refused_before_anything_is_measured() -> None:
    class Pair:
        target = draft = TableModel.random(0)

        @staticmethod
        def encode(text: str) -> list[int]:
            return [1] * len(text)

    Pair.target.context_limit = 30
    with pytest.raises(ConfigError, match=r"of 1 to 6 tokens, got 7 in 'wordier'.*check=false"):
        encode_prompts(Pair, replace(PLAN, prompts=("word", "wordier")))  # type: ignore[arg-type]
