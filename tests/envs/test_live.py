# SPDX-License-Identifier: Apache-2.0
"""The live environment: what `generate` does, decided from outside; the same text, steps and seconds."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from speckv import envs
from speckv.agents.rules.kangaroo import Kangaroo, KangarooSettings
from speckv.agents.rules.transformers_heuristic import TransformersHeuristic, TransformersHeuristicSettings
from speckv.agents.token_by_token import TokenByToken
from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.envs.live import LiveDecodingEnv, LivePrompt
from speckv.errors import ConfigError
from tests.fakes import TableModel
from tests.fakes_settings import shipped
from tests.fakes_traces import make_cost_table

TABLE = make_cost_table()
PROMPTS = tuple(LivePrompt(prompt_id=f"p{k}", tokens=(1, 2, 3 + k)) for k in range(3))
BUDGET = 30
CONTEXT = RequestContext(compression="fp16", cost_ratio=TABLE.cost_ratio("fp16"))


def ticking() -> Callable[[], float]:
    """A clock that moves by one second whenever it is read."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    return clock


def make_engine(mode: str = "greedy", eos: frozenset[int] = frozenset()) -> Engine:
    target = TableModel.random(4)
    sampling = SamplingConfig(mode=mode, temperature=0.8, seed=1)
    return Engine(target, target.perturbed(5, 1.0), eos_token_ids=eos, sampling=sampling, clock=ticking())


def make(**settings: Any) -> LiveDecodingEnv:
    options: dict[str, Any] = {"engine": make_engine(), "prompts": PROMPTS, "cost": TABLE, "max_new_tokens": BUDGET}
    env = gym.make(envs.LIVE_DECODING, **(options | settings)).unwrapped
    assert isinstance(env, LiveDecodingEnv)
    return env


def test_passes_are_captured_before_the_first_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = make_engine(), list[int]()
    monkeypatch.setattr(engine, "capture_ahead", asked.append)
    make(engine=engine)
    assert asked == [max(len(prompt.tokens) for prompt in PROMPTS) + BUDGET]


@pytest.mark.parametrize("decides", ["per_step", "per_token"])
def test_gymnasium_finds_nothing_to_complain_about(decides: str) -> None:
    env = make(decides=decides)
    assert env.spec is not None
    assert env.spec.nondeterministic
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("mode", ["greedy", "gumbel"])
@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_steps_are_those_of_generate(mode: str, index: int) -> None:
    controller = TransformersHeuristic(shipped(TransformersHeuristicSettings))
    prompt = PROMPTS[index]
    lived = generate(
        make_engine(mode),
        prompt.tokens,
        controller,
        context=CONTEXT,
        max_new_tokens=BUDGET,
        request=prompt.prompt_id,
    )
    env = make(engine=make_engine(mode))
    observation, info = env.reset(seed=0, options={"prompt": index})
    assert info["prompt_id"] == prompt.prompt_id
    controller.reset()
    for step, gamma in zip(lived.steps, lived.gammas, strict=True):
        assert controller.act(observation) == gamma
        observation, reward, terminated, truncated, info = env.step(np.int64(gamma))
        controller.learn(step.outcome)
        assert info["num_emitted"] == step.outcome.num_emitted
        assert info["seconds"] == step.outcome.seconds
        np.testing.assert_array_equal(info["outcome"].draft_signals, step.outcome.draft_signals)
        assert reward == pytest.approx(step.outcome.num_emitted * env.plain_s / step.outcome.seconds)
    assert (terminated, truncated) == (lived.finish == "eos", lived.finish == "length")
    assert tuple(env.engine.tokens) == lived.tokens


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_token_by_token_too(index: int) -> None:
    controller, prompt = Kangaroo(shipped(KangarooSettings, eta=0.5)), PROMPTS[index]
    lived = generate(
        make_engine("gumbel"),
        prompt.tokens,
        controller,
        context=CONTEXT,
        max_new_tokens=BUDGET,
        request=prompt.prompt_id,
    )
    env, player = make(engine=make_engine("gumbel"), decides="per_token", gamma_max=6), TokenByToken(controller)
    observation, _ = env.reset(seed=0, options={"prompt": index})
    player.reset()
    drafted: list[int] = []
    ended = False
    while not ended:
        observation, _, terminated, truncated, info = env.step(player.act(observation))
        ended = terminated or truncated
        if info["num_emitted"]:
            drafted.append(info["num_drafted"])
    assert tuple(env.engine.tokens) == lived.tokens
    assert drafted == [step.outcome.num_drafted for step in lived.steps]
    assert len(set(drafted)) > 1


def test_an_end_of_text_terminates_and_a_prompt_with_nothing_to_decide_is_passed_over() -> None:
    plain = make_engine()
    plain.start(PROMPTS[0].tokens, max_new_tokens=BUDGET, request="p0")
    first = plain.tokens[0]
    while plain.finish is None:
        plain.step(0)
    later = next(token for token in plain.tokens if token != first)
    env = make(engine=make_engine(eos=frozenset({later})), prompts=PROMPTS[:1])
    env.reset(seed=0)
    ends = [env.step(np.int64(0))[2] for _ in range(plain.tokens.index(later))]
    assert ends == [False] * (len(ends) - 1) + [True]
    with pytest.raises(ConfigError, match="more than one token"):
        make(engine=make_engine(eos=frozenset({first})), prompts=PROMPTS[:1]).reset(seed=0)


def test_the_seconds_of_actions_add_up_to_those_of_the_models() -> None:
    """Reading the ticking clock twice a part makes a drafted token and a verification one second each."""
    env = make(decides="per_token", reward="time")
    env.reset(seed=0, options={"prompt": 0})
    seconds = [env.step(np.int64(action))[4]["seconds"] for action in (1, 1, 0)]
    assert seconds == [1.0, 1.0, 1.0]


def test_a_step_that_was_not_verified_leaves_no_trace() -> None:
    engine = make_engine()
    engine.start(PROMPTS[0].tokens, max_new_tokens=BUDGET, request="p0")
    engine.begin_step(4)
    engine.draft_token()
    engine.draft_token()
    while engine.finish is None:
        engine.step(3)
    untouched = make_engine()
    untouched.start(PROMPTS[0].tokens, max_new_tokens=BUDGET, request="p0")
    while untouched.finish is None:
        untouched.step(3)
    assert engine.tokens == untouched.tokens


def test_bad_settings_and_actions_are_refused() -> None:
    with pytest.raises(ConfigError, match="decides to be one of"):
        make(decides="sometimes")
    with pytest.raises(ConfigError, match="a reward of"):
        make(decides="per_token", reward="throughput")
    with pytest.raises(ConfigError, match="at least one prompt"):
        make(prompts=())
    env = make()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.int64(1))
    with pytest.raises(ConfigError, match="one of 3 prompts"):
        env.reset(options={"prompt": 3})
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="Expected an action"):
        env.step(np.int64(17))


def test_an_engine_without_an_open_step_says_so() -> None:
    engine = make_engine()
    engine.start(PROMPTS[0].tokens, max_new_tokens=BUDGET)
    with pytest.raises(ConfigError, match="Call begin_step first"):
        engine.verify_draft()
