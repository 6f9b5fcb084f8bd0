# SPDX-License-Identifier: Apache-2.0
"""Observations: hand-computed features, their bounds, and the schema that travels with a policy."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from speckv.errors import SchemaError
from speckv.observation import (
    SCHEMA,
    STOPPING_SCHEMA,
    TESTED_FEATURES,
    History,
    ObservationSchema,
    StaticContext,
    StepBatch,
    observe,
    running_summary,
    summarise_tested,
    update_history,
)
from speckv.types import StepOutcome
from tests.fakes_traces import make_signals

# Entropy, confidence, margin of three drafted tokens.
SIGNALS = np.array([[[1.0, 0.5, 0.25], [3.0, 0.25, 0.0], [2.0, 0.75, 0.5]]], np.float32)


def make_outcome(num_drafted: int, num_accepted: int, num_emitted: int | None = None) -> StepOutcome:
    return StepOutcome(
        gamma=num_drafted,
        num_drafted=num_drafted,
        num_accepted=num_accepted,
        num_tested=min(num_accepted + 1, num_drafted),
        num_emitted=num_accepted + 1 if num_emitted is None else num_emitted,
        draft_signals=SIGNALS[0, :num_drafted],
        target_entropy=0.5,
        target_confidence=0.875,
        seconds=1.0,
    )


def features_after(*outcomes: StepOutcome) -> dict[str, float]:
    history = History.start(1, target_entropy=0.25, target_confidence=0.75)
    for outcome in outcomes:
        history = update_history(history, StepBatch.from_outcome(outcome))
    static = StaticContext.of(["nf4"], {"nf4": 0.5}, [100])
    return dict(zip(SCHEMA.names, observe(history, static)[0].tolist(), strict=True))


def test_summary_of_tested_tokens() -> None:
    # Means over two tokens: entropy (1 + 3) / 2, confidence (0.5 + 0.25) / 2, margin (0.25 + 0) / 2.
    assert dict(zip(TESTED_FEATURES, summarise_tested(SIGNALS[0], 2).tolist(), strict=True)) == {
        "draft_entropy_mean": 2.0,
        "draft_entropy_max": 3.0,
        "draft_confidence_mean": 0.375,
        "draft_confidence_min": 0.25,
        "draft_margin_mean": 0.125,
        "draft_confidence_last": 0.25,
    }


def test_nothing_tested_is_neutral() -> None:
    assert summarise_tested(SIGNALS[0], 0).tolist() == [0, 0, 1, 1, 1, 1]
    assert summarise_tested(SIGNALS[0, :0], 0).tolist() == [0, 0, 1, 1, 1, 1]


@given(depth=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_summary_does_not_depend_on_what_follows(depth: int, seed: int) -> None:
    signals = make_signals(np.random.default_rng(seed), 2, 16)
    for row, summaries in zip(signals, running_summary(signals), strict=True):
        np.testing.assert_array_equal(summarise_tested(row, depth), summaries[depth])


def test_before_the_first_step() -> None:
    observed = features_after()
    assert observed == pytest.approx(
        {
            "draft_entropy_mean": 0.0,
            "draft_entropy_max": 0.0,
            "draft_confidence_mean": 1.0,
            "draft_confidence_min": 1.0,
            "draft_margin_mean": 1.0,
            "accepted_fraction": 0.7,
            "previous_gamma": 0.0,
            "acceptance_ema": 0.7,
            "accepted_ema": 0.7 / 0.3 / 16,
            "draft_confidence_last": 1.0,
            "target_entropy": 0.25,
            "target_confidence": 0.75,
            "cost_ratio": 0.5,
            "bits_per_weight": 0.25,
            "position": 0.01,
            "tokens_left": 1.0,
            "draft_lag": 0.0,
        }
    )


def test_after_a_partly_accepted_draft() -> None:
    observed = features_after(make_outcome(3, 1))
    assert observed["draft_entropy_mean"] == 2.0  # two of three tokens were tested
    assert observed["draft_confidence_last"] == 0.25
    assert observed["accepted_fraction"] == pytest.approx(1 / 3)
    assert observed["previous_gamma"] == pytest.approx(3 / 16)
    assert observed["acceptance_ema"] == pytest.approx((1 + 2.8) / (2 + 4))
    assert observed["accepted_ema"] == pytest.approx((0.9 * 7 / 3 + 0.1 * 1) / 16)
    assert (observed["target_entropy"], observed["target_confidence"]) == (0.5, 0.875)
    assert observed["position"] == pytest.approx(0.03)
    assert observed["draft_lag"] == 0.0


def test_plain_decoding_keeps_what_the_draft_last_said() -> None:
    before, after = features_after(make_outcome(3, 1)), features_after(make_outcome(3, 1), make_outcome(0, 0))
    for name in ("draft_entropy_mean", "draft_confidence_last", "accepted_fraction", "accepted_ema"):
        assert after[name] == before[name]
    assert after["previous_gamma"] == 0.0
    # Old evidence fades towards the prior.
    assert after["acceptance_ema"] == pytest.approx((0.9 * 1 + 2.8) / (0.9 * 2 + 4))
    assert after["position"] == pytest.approx(0.04)
    assert after["draft_lag"] == pytest.approx(1 / 16)


def test_draft_lag() -> None:
    full, plain = make_outcome(2, 2), make_outcome(0, 0)
    assert features_after(full)["draft_lag"] == pytest.approx(1 / 16)  # the last accepted token was never read
    assert features_after(full, plain, plain)["draft_lag"] == pytest.approx(3 / 16)
    assert features_after(plain, plain, make_outcome(2, 0))["draft_lag"] == 0.0
    assert features_after(*[plain] * 20)["draft_lag"] == 1.0


def test_end_of_text_emits_no_bonus() -> None:
    assert features_after(make_outcome(2, 2, num_emitted=2))["position"] == pytest.approx(0.03)


def test_tokens_left_saturates() -> None:
    history = History.start(3, 0.0, 1.0)
    static = StaticContext.of(["fp16"] * 3, {"fp16": 0.1}, [200, 65, 33])
    left = observe(history, static)[:, SCHEMA.index("tokens_left")]
    assert left.tolist() == [1.0, 1.0, 0.5]


def random_steps(seed: int, n: int) -> StepBatch:
    rng = np.random.default_rng(seed)
    drafted = rng.integers(0, 17, n)
    accepted = rng.integers(0, drafted + 1)
    return StepBatch(
        num_drafted=drafted,
        num_accepted=accepted,
        num_emitted=accepted + 1,
        tested=(rng.normal(0, 20, (n, 6))).astype(np.float32),
        target=(rng.normal(0, 20, (n, 2))).astype(np.float32),
    )


@given(seeds=st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_always_within_bounds(seeds: list[int]) -> None:
    history = History.start(4, 99.0, -1.0)
    static = StaticContext.of(
        ["fp16", "int8", "nf4", "nf4"], {"fp16": 0.1, "int8": 1.0, "nf4": 7.0}, [2, 40, 400, 9999]
    )
    for seed in seeds:
        history = update_history(history, random_steps(seed, 4))
        observed = observe(history, static)
        assert observed.dtype == np.float32
        assert np.all((observed >= SCHEMA.low) & (observed <= SCHEMA.high))


def arrays_of(history: History) -> dict[str, NDArray[np.generic]]:
    return {f.name: getattr(history, f.name).copy() for f in fields(History)}


def test_update_leaves_the_past_alone() -> None:
    history = History.start(3, 0.5, 0.5)
    before = arrays_of(history)
    after = update_history(history, random_steps(1, 3))
    after.restart(np.array([0, 1, 2]), np.zeros((3, 2), np.float32))
    for name, value in arrays_of(history).items():
        np.testing.assert_array_equal(value, before[name])


def test_masked_rows_keep_their_past() -> None:
    history = update_history(History.start(3, 0.5, 0.5), random_steps(2, 3))
    everyone = update_history(history, random_steps(3, 3))
    where = np.array([True, False, True])
    masked = update_history(history, random_steps(3, 3), where)
    for name, value in arrays_of(masked).items():
        np.testing.assert_array_equal(value[where], getattr(everyone, name)[where])
        np.testing.assert_array_equal(value[~where], getattr(history, name)[~where])


def test_restart_forgets_some_rows() -> None:
    history = update_history(History.start(3, 0.5, 0.5), random_steps(4, 3))
    kept = arrays_of(history)
    history.restart(np.array([2, 0]), np.array([[1.0, 0.25], [2.0, 0.5]], np.float32))
    fresh = History.start(2, [1.0, 2.0], [0.25, 0.5])
    for name, value in arrays_of(history).items():
        np.testing.assert_array_equal(value[[2, 0]], getattr(fresh, name))
        np.testing.assert_array_equal(value[1], kept[name][1])


def test_neighbours_do_not_matter() -> None:
    static = StaticContext.of(["fp16", "nf4", "int8"], {"fp16": 0.1, "int8": 0.2, "nf4": 0.4}, [50, 60, 70])
    together, alone = History.start(3, 0.5, 0.5), History.start(1, 0.5, 0.5)
    for seed in range(10):
        steps = random_steps(seed, 3)
        together = update_history(together, steps)
        row = StepBatch(**{f.name: getattr(steps, f.name)[1:2] for f in fields(StepBatch)})
        alone = update_history(alone, row)
    np.testing.assert_array_equal(
        observe(together, static)[1:2], observe(alone, StaticContext.of(["nf4"], {"nf4": 0.4}, [60]))
    )


def test_schema_round_trip() -> None:
    copy = ObservationSchema.from_json(SCHEMA.to_json())
    assert copy == SCHEMA
    assert copy.sha256() == SCHEMA.sha256()


def test_schema_shape() -> None:
    assert SCHEMA.size == len(set(SCHEMA.names)) == 17
    assert SCHEMA.low.dtype == SCHEMA.high.dtype == np.float32
    assert SCHEMA.index("draft_lag") == 16
    with pytest.raises(SchemaError, match="got 'lag'"):
        SCHEMA.index("lag")


def test_features_of_a_stored_schema_are_found_by_name() -> None:
    stored = replace(SCHEMA, fields=(SCHEMA.fields[9], *SCHEMA.fields[:3]))
    positions = stored.select_from(STOPPING_SCHEMA)
    assert positions.tolist() == [9, 0, 1, 2]
    assert STOPPING_SCHEMA.select_from(STOPPING_SCHEMA).tolist() == list(range(STOPPING_SCHEMA.size))
    observation = observe(History.start(2, 0.5, 0.75), StaticContext.of(["nf4"] * 2, {"nf4": 0.5}, [100] * 2))
    assert observation[:, SCHEMA.fields.index(stored.fields[0])].tolist() == observation[:, positions][:, 0].tolist()


def test_what_cannot_be_found_by_name_is_refused() -> None:
    first = SCHEMA.fields[0]
    for stored, message in (
        (replace(SCHEMA, version=2), "version 1, got 2"),
        (replace(SCHEMA, fields=(first._replace(name="entropy"),)), "got 'entropy'"),
        (replace(SCHEMA, fields=(first._replace(high=9.0),)), "'draft_entropy_mean' with high 12.0, got 9.0"),
        (replace(SCHEMA, fields=(first._replace(unit="bits"),)), "unit 'nats', got 'bits'"),
    ):
        with pytest.raises(SchemaError, match=message):
            stored.select_from(SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"version": 1, "fields": [{"name": "x"}]}),
        json.dumps({"version": 1, "fields": [{"name": "x", "unit": "1", "low": "a", "high": 1, "description": ""}]}),
    ],
)
def test_damaged_schema(text: str) -> None:
    with pytest.raises(SchemaError, match="Expected an observation schema as JSON"):
        ObservationSchema.from_json(text)
