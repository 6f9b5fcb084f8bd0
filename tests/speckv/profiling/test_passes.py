# SPDX-License-Identifier: Apache-2.0
"""Pass times on a clock that the test holds: what goes in comes out, whatever the machine does meanwhile."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from speckv.errors import ConfigError
from speckv.models import CausalModel
from speckv.profiling.passes import open_rows, time_passes
from speckv.profiling.timing import WIDTHS, TimingPlan
from tests.fakes import as_causal, tiny_qwen
from tests.fakes_clock import FakeClock, PassTime, TimedRows

PLAN = TimingPlan(reference_context=16, far_context=48, repeats=5, warmups=2)


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return as_causal(tiny_qwen(0))


def exact(width: int, context: int) -> float:
    """1 s, 1/16 s a further token, 1/1024 s a token of width and context."""
    return 1.0 + (width - 1) / 16 + width * context / 1024


def opened(clock: FakeClock, pass_s: PassTime) -> tuple[list[TimedRows], object]:
    made: list[TimedRows] = []

    def rows(_: CausalModel, batch: int) -> TimedRows:
        made.append(TimedRows(clock, pass_s, batch))
        return made[-1]

    return made, rows


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("drafting", [True, False])
def test_known_times_come_out(model: CausalModel, batch: int, drafting: bool) -> None:
    clock = FakeClock()
    made, rows = opened(clock, exact)
    times = time_passes(model, PLAN, batch=batch, drafting=drafting, clock=clock, rows=rows)  # type: ignore[arg-type]
    assert times.widths == tuple(range(1, 18))
    np.testing.assert_allclose(times.seconds, [exact(w, 16) for w in WIDTHS], rtol=1e-12)
    np.testing.assert_allclose(times.slope_s, [w / 1024 for w in WIDTHS], rtol=1e-9)
    assert max(times.spread) == pytest.approx(0.0, abs=1e-12)
    near, far = made
    assert [w for w, _, _ in near.asked[1:]] == list(WIDTHS) * 7
    assert [w for w, _, _ in far.asked[1:]] == [1, 5, 17] * 7
    assert {context for _, context, _ in near.asked[1:]} == {16}
    assert all(scored == (1 if drafting else width) for width, _, scored in near.asked[1:])


def test_a_large_batch_reads_its_context_in_pieces(model: CausalModel) -> None:
    clock = FakeClock()
    made, rows = opened(clock, exact)
    plan = replace(PLAN, widths=(1, 2), repeats=1, warmups=1)
    time_passes(model, plan, batch=512, drafting=True, clock=clock, rows=rows)  # type: ignore[arg-type]
    assert [w for w, _, _ in made[0].asked] == [8, 8, 1, 2, 1, 2]  # 512 rows of 8 tokens are 4096 at once


def test_few_widths_are_enough(model: CausalModel) -> None:
    clock = FakeClock()
    made, rows = opened(clock, exact)
    plan = replace(PLAN, widths=(1, 9))
    times = time_passes(model, plan, drafting=True, clock=clock, rows=rows)  # type: ignore[arg-type]
    assert times.seconds == pytest.approx([exact(1, 16), exact(9, 16)])
    assert times.slope_s == pytest.approx([1 / 1024, 9 / 1024])
    assert [w for w, _, _ in made[1].asked[1:]] == [1, 9] * 7


def test_first_rounds_and_single_outliers_do_not_count(model: CausalModel) -> None:
    clock, calls = FakeClock(), itertools.count()

    def slow_at_first(width: int, context: int) -> float:
        call = next(calls)
        return exact(width, context) + (100.0 if call < 2 + 2 * 20 or call == 60 else 0.0)  # two prefills, two rounds

    _, rows = opened(clock, slow_at_first)
    times = time_passes(model, PLAN, drafting=True, clock=clock, rows=rows)  # type: ignore[arg-type]
    np.testing.assert_allclose(times.seconds, [exact(w, 16) for w in WIDTHS], rtol=1e-12)


def test_a_machine_that_slows_down_does_not_bend_the_slope(model: CausalModel) -> None:
    clock, calls = FakeClock(), itertools.count(-2)

    def slower_and_slower(width: int, context: int) -> float:
        return exact(width, context) * (1.0 + 0.125 * max(0, next(calls) // 20))  # 20 passes a round

    _, rows = opened(clock, slower_and_slower)
    times = time_passes(model, PLAN, drafting=False, clock=clock, rows=rows)  # type: ignore[arg-type]
    # Rounds 2 to 6 count, and round 4, at half speed more, is the median of near and far alike.
    np.testing.assert_allclose(times.seconds, [1.5 * exact(w, 16) for w in WIDTHS], rtol=1e-12)
    np.testing.assert_allclose(times.slope_s, [1.5 * w / 1024 for w in WIDTHS], rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference_context": 64}, "reference_context < far_context, got 64 and 48"),
        ({"widths": (1,)}, r"at least two ascending widths, the first 1, got \[1\]"),
        ({"widths": (1, 5, 5)}, r"ascending widths, the first 1, got \[1, 5, 5\]"),
        ({"repeats": 0}, "repeats and warmups of at least 1, got 0 and 2"),
        ({"warmups": 0}, "at least 1, got 5 and 0"),
    ],
)
def test_wrong_plans(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAN, **wrong)  # type: ignore[arg-type]


def test_a_context_that_does_not_fit(model: CausalModel) -> None:
    with pytest.raises(ConfigError, match="far_context of at most 111 for tiny, got 112"):
        time_passes(model, replace(PLAN, far_context=112), drafting=True)


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_of_a_batch_are_sequences_of_their_own(model: CausalModel, batch: int) -> None:
    tokens = torch.randint(0, 24, (batch, 12), generator=torch.Generator().manual_seed(1))
    rows = open_rows(model, batch)
    rows.extend(tokens[:, :6], 1)
    rows.extend(tokens[:, 2:5], 3)  # forgotten again
    rows.truncate(6)
    scored = rows.extend(tokens[:, 6:], 2).logits.reshape(batch, 2, -1)
    for row, logits in zip(tokens.tolist(), scored, strict=True):
        torch.testing.assert_close(logits, model.sequence().extend(row, num_logits=2))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 4])
def test_cuda_events_time_passes(batch: int) -> None:
    device = torch.device("cuda")
    inner = tiny_qwen(0)
    torch.nn.Module.to(inner, device)
    model = as_causal(inner)
    times = time_passes(replace(model, device=device), PLAN, batch=batch, drafting=False)
    assert all(1e-6 < seconds < 1.0 for seconds in times.seconds)
