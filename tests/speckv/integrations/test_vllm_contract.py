# SPDX-License-Identifier: Apache-2.0
"""What our vLLM classes do in an engine that behaves as vLLM does; vLLM itself is not needed."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from speckv.errors import ConfigError
from speckv.integrations import vllm as rooms
from speckv.integrations.environment import POLICY
from speckv.integrations.vllm import signals, use
from speckv.integrations.vllm.scheduler import make_scheduler
from speckv.integrations.vllm.sessions import COMBINE, PER_REQUEST, SIGNALS, EnvironmentSettings
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.signals import signals_of_logits
from speckv.types import FloatArray, IntArray
from tests.fakes_vllm import PLACE, TYPICAL, FakeRequest, FakeScheduler, Learner, Script, StopsUnsure, fake_config


def build(script: Script | Learner, *, budget: int = 64, requests: int = 1, **changes: Any) -> Any:
    with use(Policy.of(script)):
        overlaps = changes.get("scheduler_config__async_scheduling", False)
        scheduler = make_scheduler(FakeScheduler, "Scheduler", overlaps=overlaps)(fake_config(**changes))
    for place in range(requests):
        scheduler.requests[f"r{place}"] = FakeRequest(request_id=f"r{place}", max_tokens=budget)
    return scheduler


def step(scheduler: Any, accepted: Mapping[str, int] | None = None, numbers: Mapping[str, int] | None = None) -> Any:
    """One pass, of which so many of each draft are kept; then a draft as long as the scheduler asked for."""
    output = scheduler.schedule(numbers)
    names = list(output.num_scheduled_tokens)
    drafted = {name: len(output.scheduled_spec_decode_tokens.get(name, ())) for name in names}
    kept = {name: min((accepted or {}).get(name, 0), drafted[name]) for name in names}
    reading = {name for name in names if scheduler.requests[name].is_prefill_chunk}
    tokens = [[] if name in reading else [7] * (kept[name] + 1) for name in names]
    ran = SimpleNamespace(req_id_to_index={name: k for k, name in enumerate(names)}, sampled_token_ids=tokens)
    scheduler.update_from_output(output, ran)
    alive = [name for name in names if name in scheduler.requests]
    draft = [[3] * output.num_spec_tokens_to_schedule for _ in alive]
    scheduler.update_draft_token_ids(SimpleNamespace(req_ids=alive, draft_token_ids=draft))
    return output


def test_each_pass_drafts_what_the_policy_says_and_every_outcome_is_told() -> None:
    scheduler = build(script := Script([5, 0, 3, 1]))
    asked = [step(scheduler, {"r0": 2}).num_spec_tokens_to_schedule for _ in range(6)]
    assert asked == [5, 0, 3, 1, 5, 0]
    (played,) = script.played
    # The prompt's pass is no step; what its draft came to is known one pass later.
    assert played.drafted == [5, 0, 3, 1, 5]
    assert played.accepted == [2, 0, 2, 1, 2]
    assert [o.num_emitted for o in played.outcomes] == [3, 1, 3, 2, 3]


def test_a_policy_longer_than_the_engine_is_cut() -> None:
    scheduler = build(Script([12]))
    assert step(scheduler).num_spec_tokens_to_schedule == 8


@pytest.mark.parametrize(("word", "expected"), [("median", 2), ("mean", 4), ("min", 0), ("max", 8)])
def test_gammas_of_a_batch_become_one(monkeypatch: pytest.MonkeyPatch, word: str, expected: int) -> None:
    monkeypatch.setenv(COMBINE, word)
    # Median of 0, 2, 8, 4 from below is 2, the mean 3.5 rounds up.
    scripts = iter([0, 2, 8, 4])

    class Each(Script):
        def act(self, observation: Any) -> int:  # noqa: ARG002
            return next(scripts)

    scheduler = build(Each([0]), requests=4)
    assert step(scheduler).num_spec_tokens_to_schedule == expected


def test_requests_that_still_read_their_prompt_have_no_say() -> None:
    scheduler = build(script := Script([5]), requests=2)
    output = step(scheduler, numbers={"r0": 4, "r1": 2})
    assert output.num_spec_tokens_to_schedule == 5
    assert len(script.played) == 1
    output = step(scheduler, numbers={"r1": 1})
    assert output.num_spec_tokens_to_schedule == 0


def test_sessions_end_with_their_requests() -> None:
    scheduler = build(script := Script([0]), budget=3, requests=2)
    for _ in range(2):
        step(scheduler)
    assert len(scheduler.speckv) == 2
    scheduler.finish_requests(["r0"], "aborted")
    assert len(scheduler.speckv) == 1
    step(scheduler)
    assert len(scheduler.speckv) == 0
    # The same name later is another request.
    scheduler.requests["r0"] = FakeRequest(request_id="r0")
    step(scheduler)
    assert len(script.played) == 3


def test_the_budget_bounds_the_draft() -> None:
    scheduler = build(Script([8]), budget=4)
    asked = [step(scheduler, {"r0": 0}).num_spec_tokens_to_schedule for _ in range(3)]
    # Tokens left after what is known: 3, 3, 2; one of them is the target's own.
    assert asked == [2 + 1 - 1, 2, 1]


@pytest.mark.parametrize("per_request", ["0", "1"])
def test_a_budget_that_nobody_asked_for_is_seen_as_typical(monkeypatch: pytest.MonkeyPatch, per_request: str) -> None:
    """vLLM fills in what the context holds behind the prompt: here 128 - 4 tokens."""
    monkeypatch.setenv(PER_REQUEST, per_request)
    with use(Policy.of(script := Script([1]), typical=TYPICAL)):
        scheduler = make_scheduler(FakeScheduler, "Scheduler")(fake_config())
    for name, budget in (("asked", 123), ("filled", 124), ("more", 500)):
        scheduler.requests[name] = FakeRequest(request_id=name, max_tokens=budget)
    for _ in range(4):
        step(scheduler)
    asked, *others = script.played
    tokens = np.array([1, 1, 2, 3]) if per_request == "0" else np.array([1, 2, 3, 4])
    np.testing.assert_allclose([seen[PLACE[0]] for seen in asked.seen], tokens / 123, rtol=1e-6)
    for played in others:
        assert len(played.seen) == 4
        for seen in played.seen:
            np.testing.assert_array_equal(seen[PLACE], TYPICAL[PLACE])


def test_drafts_are_cut_to_each_requests_own_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PER_REQUEST, "1")
    scheduler = build(script := Script([4, 0, 1]), requests=1)
    verified = []
    for _ in range(5):
        output = step(scheduler, {"r0": 1})
        # All that the engine can draft, every time: the cut comes behind it.
        assert output.num_spec_tokens_to_schedule == 8
        verified.append(len(output.scheduled_spec_decode_tokens.get("r0", ())))
    assert verified == [0, 4, 0, 1, 4]
    # Decided when everything is known, so each outcome belongs to the decision before it.
    (played,) = script.played
    assert [(o.gamma, o.num_accepted) for o in played.outcomes] == [(4, 1), (0, 0), (1, 1), (4, 1)]


def test_a_learner_learns_from_every_request_of_a_batch_what_its_own_choice_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PER_REQUEST, "1")
    scheduler = build(learner := Learner([4, 0, 1, 3, 2, 5, 7]), requests=3)
    for turn in range(6):
        step(scheduler, {"r0": turn % 2, "r1": 3, "r2": 0})
    # The prompt's pass is no step of any of the three.
    assert len(learner.pairs) == 3 * 5
    assert [said for said, _ in learner.pairs] == [learner.gammas[k % 7] for k in range(3 * 5)]
    for place, (said, outcome) in enumerate(learner.pairs):
        kept = ((place // 3 + 1) % 2, 3, 0)[place % 3]
        assert (outcome.gamma, outcome.num_drafted, outcome.num_accepted) == (said, said, min(kept, said or 0))


def test_a_learner_inside_steps_must_be_shown_the_drafts_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inside(Learner):
        def go_on(self, observation: FloatArray) -> bool:
            raise NotImplementedError

        def go_on_batch(self, observations: FloatArray) -> IntArray:
            raise NotImplementedError

    monkeypatch.setenv(PER_REQUEST, "1")
    with pytest.raises(ConfigError, match=r"SPECKV_SIGNALS=1.*signals"):
        build(Inside([1]))
    monkeypatch.setenv(SIGNALS, "1")
    monkeypatch.setattr(signals, "_installed", [object])
    build(Inside([1]))


def test_a_stop_rule_cuts_on_the_drafts_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PER_REQUEST, "1")
    monkeypatch.setenv(SIGNALS, "1")
    monkeypatch.setattr(signals, "_installed", [object])
    scheduler = build(script := StopsUnsure([8]))
    sure = [(0.1, 0.9, 0.8), (0.2, 0.8, 0.7), (2.0, 0.2, 0.1), (0.1, 0.9, 0.8)]
    monkeypatch.setattr(signals, "take", lambda: [sure])
    step(scheduler)
    output = step(scheduler, {"r0": 1})
    # The token at which it stops stays in the draft.
    assert len(output.scheduled_spec_decode_tokens["r0"]) == 3
    np.testing.assert_allclose(script.played[0].outcomes[0].draft_signals, sure[:3], rtol=1e-6)


def test_signals_of_a_batch_come_with_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIGNALS, "1")
    monkeypatch.setattr(signals, "_installed", [object])
    scheduler = build(script := Script([2]))
    drafts = iter([[[(0.1 * k, 0.9, 0.8), (0.2, 0.7, 0.6)]] for k in range(1, 5)])
    monkeypatch.setattr(signals, "take", lambda: next(drafts))
    for _ in range(3):
        step(scheduler, {"r0": 2})
    shown = [outcome.draft_signals[0, 0] for outcome in script.played[0].outcomes]
    np.testing.assert_allclose(shown, [0.1, 0.2], rtol=1e-6)


def test_an_outcome_without_tokens_is_none() -> None:
    scheduler = build(script := Script([2]))
    step(scheduler)
    output = scheduler.schedule()
    scheduler.update_from_output(output, SimpleNamespace(req_id_to_index={"r0": 0}, sampled_token_ids=[]))
    assert script.played[0].outcomes == []


@pytest.mark.parametrize(
    ("changes", "environment", "learns", "message"),
    [
        ({"speculative_config": None}, {}, False, "speculative_config"),
        ({"speculative_config__num_speculative_tokens_per_batch_size": None}, {}, False, r"\[\[1, 4, 8\]\]"),
        ({"scheduler_config__async_scheduling": True}, {PER_REQUEST: "1"}, False, "async_scheduling=False"),
        ({"scheduler_config__async_scheduling": True}, {SIGNALS: "1"}, False, "async_scheduling=False"),
        ({"parallel_config__world_size": 2}, {SIGNALS: "1"}, False, "one worker"),
        ({}, {SIGNALS: "1"}, False, "vllm.general_plugins"),
        ({}, {}, True, "no request's own choice"),
        ({"scheduler_config__max_num_seqs": 1}, {}, True, "SPECKV_PER_REQUEST=1"),
        ({}, {PER_REQUEST: "1"}, True, "max_num_seqs=1.*save_request"),
        ({}, {COMBINE: "medium"}, False, "median"),
        ({}, {PER_REQUEST: "yes"}, False, "0 or 1"),
    ],
)
def test_what_cannot_be_served_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: Any, environment: Mapping[str, str], learns: bool, message: str
) -> None:
    for name, word in environment.items():
        monkeypatch.setenv(name, word)
    monkeypatch.setattr(signals, "_installed", [])

    class Learns(Script):
        learns = True

    with pytest.raises(ConfigError, match=message):
        build(Learns([1]) if learns else Script([1]), **changes)


def test_a_scheduler_for_passes_one_by_one_is_refused_where_they_overlap() -> None:
    for overlapped, overlaps in ((False, False), (False, True), (True, True)):
        kind = make_scheduler(FakeScheduler, "Scheduler", overlaps=overlaps)
        with use(Policy.of(Script([1]))):
            kind(fake_config(scheduler_config__async_scheduling=overlapped))
    kind = make_scheduler(FakeScheduler, "Scheduler")
    with use(Policy.of(Script([1]))), pytest.raises(ConfigError, match="SpecKVAsyncScheduler"):
        kind(fake_config(scheduler_config__async_scheduling=True))


def test_a_scheduler_that_lacks_a_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="update_draft_token_ids"):
        make_scheduler(type("Old", (), {"update_from_output": None}), "Scheduler")


def test_the_policy_comes_from_the_environment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=POLICY):
        EnvironmentSettings.read({})
    Policy.of(ConstantGamma(3)).save(tmp_path / "three.speckv")
    read = EnvironmentSettings.read({POLICY: str(tmp_path / "three.speckv"), COMBINE: "mean", SIGNALS: "1"})
    assert read.policy.name == "fixed-3"
    assert (read.combine, read.per_request, read.signals, read.compression) == ("mean", False, True, None)


def test_nothing_else_is_offered() -> None:
    with pytest.raises(AttributeError, match="Scheduling"):
        _ = rooms.Scheduling


# -- signals -----------------------------------------------------------------------------------------------------------


class FakeModel(torch.nn.Module):
    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * 2


def make_proposer() -> Any:
    class Proposer:
        model = FakeModel()

        def propose(self, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.stack([self._sample_draft_tokens(one)[0] for one in hidden], dim=1)

        def _sample_draft_tokens(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.model.compute_logits(hidden_states).argmax(-1), None

    return Proposer


def test_a_wrapped_proposer_leaves_its_signals_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_installed", [])
    proposer = make_proposer()
    hidden = [torch.randn(2, 16, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    before = proposer().propose(hidden)
    signals.wrap(proposer)
    wrapped = proposer.propose
    signals.wrap(proposer)
    assert proposer.propose is wrapped
    assert signals.installed()
    assert torch.equal(proposer().propose(hidden), before)
    rows = signals.take()
    assert signals.take() == ()
    assert np.shape(rows) == (2, 3, 3)
    for place in range(3):
        np.testing.assert_allclose(rows[1][place], signals_of_logits(2 * hidden[place][1].numpy()), rtol=1e-4)
    # Nothing is left on the model.
    assert "compute_logits" not in vars(proposer.model)


def test_a_drafter_of_all_positions_at_once_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_installed", [])
    proposer = make_proposer()
    signals.wrap(proposer)
    proposer().propose([torch.randn(2, 16), torch.randn(2, 16)])
    assert np.shape(signals.take()) == (2, 2, 3)
    signals._publish([torch.zeros(2, 3), torch.zeros(4, 3)])
    assert signals.take() == ()


def test_the_plugin_does_nothing_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_installed", [])
    signals.install()
    assert not signals.installed()


def test_without_per_request_a_policy_that_learns_times_learns_those_of_passes() -> None:
    times = itertools.count(0.0, 0.25)
    with use(policy := Policy.load("shipped")):
        scheduler = make_scheduler(FakeScheduler, "Scheduler")(fake_config())
    scheduler.speckv._clock = lambda: next(times)
    scheduler.requests["r0"] = FakeRequest(request_id="r0", max_tokens=64)
    for _ in range(8):
        step(scheduler, {"r0": 2})
    live = policy.controller.times.live[0]  # type: ignore[attr-defined]
    assert not policy.warnings
    assert not live.by_passes
    assert live.drafts.ever > 0
    # Every pass took as long, from plan to plan.
    assert live.step_s[2] == pytest.approx(0.25, rel=0.2)
