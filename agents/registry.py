# SPDX-License-Identifier: Apache-2.0
"""Which agents there are: one name, one class of settings, one way to make a controller each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.bandits.arms import Exp3Spec, GaussianThompson, Ucb1, UcbSpec
from agents.bandits.base import Bandit
from agents.bandits.hazard import HazardThompson
from agents.bandits.linear import LinThompson, LinUcb, Scaling, measure_scaling
from agents.bandits.settings import ArmsSettings, HazardSettings, LinearSettings, UcbSettings
from agents.best_fixed import BestFixedGamma
from agents.fixed import FixedGamma
from agents.parts import Parts
from agents.rl.settings import A2CSettings, DQNSettings, PPOSettings, QRDQNSettings, RecurrentPPOSettings
from agents.rules.adaedl import AdaEdl, AdaEdlSettings
from agents.rules.gammatune import GammaTuneSettings, make_gammatune
from agents.rules.goodput import Goodput, GoodputSettings
from agents.rules.kangaroo import Kangaroo, KangarooSettings
from agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from agents.rules.sglang_ema import SglangEma, SglangEmaSettings
from agents.rules.svip import Svip, SvipSettings
from agents.rules.transformers_confidence import TransformersConfidence, TransformersConfidenceSettings
from agents.rules.transformers_heuristic import TransformersHeuristic, TransformersHeuristicSettings
from agents.settings import build_settings
from agents.survival.controllers import SurvivalGamma, SurvivalStopping
from agents.survival.settings import SurvivalSettings
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError, ConfigError, nearest
from speckv.evaluation.compare import compile_pair
from speckv.replay import replay_stream
from speckv.traces import TraceSet
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSettings:
    """Of `fixed`: its speculation length, in tokens."""

    gamma: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFixedSettings:
    """Of `best_fixed`: nothing to set, it is tuned on the train prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a controller is made from.

    Attributes:
        train: Train prompts.
        cost: The clock.
        seed: Of everything random.
    """

    train: TraceSet
    cost: CostTable
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One kind of agent.

    Attributes:
        settings: Class of its settings.
        make: Settings and lesson -> controller; None if it learns in an environment, step by step.
        restore: Settings and stored parts -> the same controller; None if it is stored by other means.
        parts: What `restore` needs of a controller besides its settings.
    """

    settings: type[Any]
    make: Callable[[Any, Lesson], Controller] | None = None
    restore: Callable[[Any, Parts], Controller] | None = None
    parts: Callable[[Any], Parts] = lambda _: Parts()


def _rule(settings: type[Any], kind: Callable[[Any], Controller]) -> Agent:
    """An agent that is nothing but its settings."""
    return Agent(settings=settings, make=lambda s, _: kind(s), restore=lambda s, _: kind(s))


def _times(lesson: Lesson) -> StepTimes:
    return StepTimes.of(lesson.cost, lesson.train.compressions, gamma_max=lesson.train.metadata.gamma_max)


def _fit_survival(settings: SurvivalSettings, lesson: Lesson) -> Controller:
    from agents.survival.train import fit_survival  # late, because PyTorch takes seconds to import

    return fit_survival(lesson.train, lesson.cost, settings, seed=lesson.seed)


def _fit_survival_stopping(settings: SurvivalSettings, lesson: Lesson) -> Controller:
    from agents.survival.train import fit_survival_stopping

    return fit_survival_stopping(lesson.train, lesson.cost, settings, seed=lesson.seed)


def _bandit(settings: type[Any], kind: Callable[..., Bandit], *, contextual: bool) -> Agent:
    """An online learner: made, it has seen the train prompts once, in a random order."""

    def build(s: Any, times: StepTimes, scaling: Scaling | None, seed: int) -> Bandit:
        return kind(s, times, scaling, seed) if contextual else kind(s, times, seed)

    def make(s: Any, lesson: Lesson) -> Controller:
        compiled, cost = compile_pair(lesson.train, lesson.cost)
        bandit = build(s, _times(lesson), measure_scaling(compiled, cost) if contextual else None, lesson.seed)
        order = np.random.default_rng(lesson.seed).permutation(len(compiled)).tolist()
        replay_stream(bandit, compiled, cost, order=order)
        bandit.reseed(lesson.seed)
        return bandit

    def restore(s: Any, parts: Parts) -> Controller:
        try:
            scaling = Scaling(mean=parts.arrays["mean"], std=parts.arrays["std"]) if contextual else None
            bandit = build(s, parts.needed_times(), scaling, 0)
            bandit.set_arrays(parts.arrays)
            bandit.reseed(int(parts.arrays["seed"]))
        except KeyError as error:
            raise CheckpointError(f"Expected an array {error} of a bandit, found none. Train again.") from error
        return bandit

    def parts(bandit: Any) -> Parts:
        arrays = bandit.get_arrays() | {"seed": np.array(bandit.seed)}
        if contextual:
            arrays |= {"mean": bandit.scaling.mean, "std": bandit.scaling.std}
        return Parts(times=bandit.times, arrays=arrays)

    return Agent(settings=settings, make=make, restore=restore, parts=parts)


AGENTS: Mapping[str, Agent] = {
    "a2c": Agent(settings=A2CSettings),
    "adaedl": _rule(AdaEdlSettings, AdaEdl),
    "best_fixed": Agent(
        settings=BestFixedSettings, make=lambda _, lesson: BestFixedGamma.tune(lesson.train, lesson.cost)
    ),
    "dqn": Agent(settings=DQNSettings),
    "exp3spec": _bandit(ArmsSettings, Exp3Spec, contextual=False),
    "fixed": Agent(settings=FixedSettings, make=lambda s, _: FixedGamma(s.gamma)),
    "gammatune": _rule(GammaTuneSettings, make_gammatune),
    "goodput": Agent(
        settings=GoodputSettings,
        make=lambda s, lesson: Goodput(s, _times(lesson)),
        restore=lambda s, parts: Goodput(s, parts.needed_times()),
        parts=lambda c: Parts(times=c.times),
    ),
    "hazard_thompson": _bandit(HazardSettings, HazardThompson, contextual=True),
    "kangaroo": _rule(KangarooSettings, Kangaroo),
    "lints": _bandit(LinearSettings, LinThompson, contextual=True),
    "linucb": _bandit(LinearSettings, LinUcb, contextual=True),
    "llama_cpp": _rule(LlamaCppSettings, LlamaCpp),
    "ppo": Agent(settings=PPOSettings),
    "qr_dqn": Agent(settings=QRDQNSettings),
    "recurrent_ppo": Agent(settings=RecurrentPPOSettings),
    "sglang_ema": _rule(SglangEmaSettings, SglangEma),
    "survival": Agent(
        settings=SurvivalSettings,
        make=_fit_survival,
        restore=lambda _, parts: SurvivalGamma(parts.network("before"), parts.needed_times()),
        parts=lambda c: Parts(networks={"before": c.before}, times=c.times),
    ),
    "survival_stopping": Agent(
        settings=SurvivalSettings,
        make=_fit_survival_stopping,
        restore=lambda _, parts: SurvivalStopping(
            parts.network("before"), parts.network("inside"), parts.needed_times()
        ),
        parts=lambda c: Parts(networks={"before": c.before.before, "inside": c.inside}, times=c.times),
    ),
    "svip": _rule(SvipSettings, Svip),
    "thompson": _bandit(ArmsSettings, GaussianThompson, contextual=False),
    "transformers_confidence": _rule(TransformersConfidenceSettings, TransformersConfidence),
    "transformers_heuristic": _rule(TransformersHeuristicSettings, TransformersHeuristic),
    "ucb1": _bandit(UcbSettings, Ucb1, contextual=False),
    "ucbspec": _bandit(UcbSettings, UcbSpec, contextual=False),
}


def require_agent(name: str) -> None:
    """Passes if there is an agent of that name.

    Raises:
        ConfigError: listing the agents, and naming the nearest.
    """
    known = sorted(AGENTS)
    if name not in AGENTS:
        raise ConfigError(f"Expected an agent of {known}, got {name!r}.{nearest(name, known)}")


def agent_settings(options: Mapping[str, object]) -> tuple[str, Any]:
    """Checks an agent's options.

    Args:
        options: `name` and the agent's own settings.

    Returns:
        The name and the checked settings.

    Raises:
        ConfigError: naming the option, if one is unknown, missing or wrong.
    """
    name = options.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"Expected agent.name to be one of {sorted(AGENTS)}, got {name!r}.")
    require_agent(name)
    rest = {key: value for key, value in options.items() if key != "name"}
    return name, build_settings(AGENTS[name].settings, rest, "agent")


def make_controller(name: str, settings: Any, lesson: Lesson) -> Controller:
    """Makes a controller that needs no environment to learn in."""
    make = AGENTS[name].make
    assert make is not None
    return make(settings, lesson)
