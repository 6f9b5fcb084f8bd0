# SPDX-License-Identifier: Apache-2.0
"""Which agents there are: one name, one class of settings, one way to make a controller each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agents.bandits import making
from agents.bandits.base import Bandit
from agents.bandits.storing import StoredBandit
from agents.best_fixed import BestFixedGamma
from agents.building import build_settings
from agents.fixed import FixedGamma
from agents.parts import Parts
from agents.per_request_fit import fit_per_request
from agents.restoring import RESTORE
from agents.rl.hyperparameters import A2CSettings, DQNSettings, PPOSettings, QRDQNSettings, RecurrentPPOSettings
from agents.rules.goodput import Goodput
from agents.speckv_mlp.settings import SpecKVMlpCostSettings, SpecKVMlpSettings
from agents.survival.settings import SurvivalSettings
from speckv.cost import CostTable, require_single_request
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError, nearest
from speckv.traces import TraceSet
from speckv.types import Controller

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSettings:
    """Of `fixed`: its speculation length, in tokens."""

    gamma: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFixedSettings:
    """Of `best_fixed`: nothing to set, it is tuned on the train prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a controller is made from.

    Attributes:
        train: Train prompts.
        cost: The clock.
        seed: Of everything random.
        hide: Features, or groups of them, that networks are not to see.
    """

    train: TraceSet
    cost: CostTable
    seed: int
    hide: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One kind of agent.

    Attributes:
        settings: Class of its settings.
        make: Settings and data -> controller; None if it learns in an environment, step by step.
        begin: As `make`, but an online learner before it has seen any request; None if it does not learn online.
        restore: Settings and stored parts -> the same controller; None if it is stored by other means.
        parts: What `restore` needs of a controller besides its settings.
        hides: Whether `make` heeds `hide`.
        stops: Whether it decides token by token (`StoppingController`); a learner's environment decides that.
        with_times: Parts and other times -> the parts with them, and without what the clock of before alone decided.
    """

    settings: type[Any]
    make: Callable[[Any, TrainingData], Controller] | None = None
    begin: Callable[[Any, TrainingData], Controller] | None = None
    restore: Callable[[Any, Parts], Controller] | None = None
    parts: Callable[[Any], Parts] = lambda _: Parts()
    hides: bool = False
    stops: bool = False
    with_times: Callable[[Parts, StepTimes], Parts] = lambda parts, times: replace(parts, times=times)


def _stored(
    name: str,
    make: Callable[[Any, TrainingData], Controller],
    parts: Callable[[Any], Parts] = lambda _: Parts(),
    *,
    stops: bool = False,
) -> Agent:
    """An agent that is made at once and comes back from settings and parts."""
    stored = RESTORE[name]
    return Agent(settings=stored.settings, make=make, restore=stored.restore, parts=parts, stops=stops)


def _survival(name: str, make: Callable[[Any, TrainingData], Controller], parts: Callable[[Any], Parts]) -> Agent:
    """A stored agent that heeds `hide` and is set by compression, whether to draft at all among else."""
    return replace(
        _stored(name, make, parts, stops=name == "survival_stopping"), hides=True, with_times=_survival_with_times
    )


def _survival_with_times(parts: Parts, times: StepTimes) -> Parts:
    rows = parts.needed_times().rows_of(times.compressions)
    arrays = {name: values[rows] for name, values in parts.arrays.items()}
    return replace(parts, times=times, arrays={**arrays, "floor": np.maximum(arrays["floor"], 0)})


def _rule(name: str, *, stops: bool = False) -> Agent:
    """An agent that is nothing but its settings."""
    return _stored(name, lambda settings, _: RESTORE[name].restore(settings, Parts()), stops=stops)


def _times(data: TrainingData) -> StepTimes:
    return StepTimes.of(data.cost, data.train.compressions)


def _fit_survival(settings: SurvivalSettings, data: TrainingData) -> Controller:
    from agents.survival.train import fit_survival  # late, because PyTorch takes seconds to import

    return fit_survival(data.train, data.cost, settings, seed=data.seed, hide=data.hide)


def _fit_survival_stopping(settings: SurvivalSettings, data: TrainingData) -> Controller:
    from agents.survival.train import fit_survival_stopping

    return fit_survival_stopping(data.train, data.cost, settings, seed=data.seed, hide=data.hide)


def _fit_speckv_mlp(settings: SpecKVMlpSettings, data: TrainingData) -> Controller:
    from agents.speckv_mlp.train import fit_speckv_mlp

    return fit_speckv_mlp(data.train, data.cost, settings, seed=data.seed)


def _fit_speckv_mlp_cost(settings: SpecKVMlpCostSettings, data: TrainingData) -> Controller:
    from agents.speckv_mlp.train import fit_speckv_mlp_cost

    return fit_speckv_mlp_cost(data.train, data.cost, settings, seed=data.seed)


def _bandit(name: str, *, stops: bool = False) -> Agent:
    """An online learner: made, it has seen the train prompts once, in a random order."""
    stored = RESTORE[name].restore
    assert isinstance(stored, StoredBandit)

    def begin(s: Any, data: TrainingData) -> Bandit:
        return making.begin(stored.kind, stored.context, s, data.train, data.cost, data.seed)

    def make(s: Any, data: TrainingData) -> Controller:
        bandit = begin(s, data)
        making.show(bandit, data.train, data.cost, data.seed)
        return bandit

    return Agent(
        settings=RESTORE[name].settings,
        make=make,
        begin=begin,
        restore=stored,
        parts=stored.take_apart,
        stops=stops,
    )


AGENTS: Mapping[str, Agent] = {
    "a2c": Agent(settings=A2CSettings),
    "adaedl": _rule("adaedl", stops=True),
    "best_fixed": Agent(settings=BestFixedSettings, make=lambda _, data: BestFixedGamma.tune(data.train, data.cost)),
    "calibrated_stopping": _bandit("calibrated_stopping", stops=True),
    "dqn": Agent(settings=DQNSettings),
    "exp3spec": _bandit("exp3spec"),
    "fixed": Agent(settings=FixedSettings, make=lambda s, _: FixedGamma(s.gamma)),
    "gammatune": _rule("gammatune"),
    "goodput": _stored("goodput", lambda s, data: Goodput(s, _times(data)), lambda c: Parts(times=c.times)),
    "hazard_thompson": _bandit("hazard_thompson"),
    "hazard_thompson_discounted": _bandit("hazard_thompson_discounted"),
    "kangaroo": _rule("kangaroo", stops=True),
    "lints": _bandit("lints"),
    "linucb": _bandit("linucb"),
    "llama_cpp": _rule("llama_cpp", stops=True),
    "neural_linear": _bandit("neural_linear"),
    "per_request": _stored(
        "per_request",
        lambda s, data: fit_per_request(data.train, data.cost, s),
        lambda c: Parts(times=c.controller.times, arrays=c.controller.arrays()),
    ),
    "ppo": Agent(settings=PPOSettings),
    "qr_dqn": Agent(settings=QRDQNSettings),
    "recurrent_ppo": Agent(settings=RecurrentPPOSettings),
    "sglang_ema": _rule("sglang_ema"),
    "speckv_mlp": _stored("speckv_mlp", _fit_speckv_mlp, lambda c: Parts(networks={"acceptance": c.acceptance})),
    "speckv_mlp_cost": _stored(
        "speckv_mlp_cost",
        _fit_speckv_mlp_cost,
        lambda c: Parts(networks={"acceptance": c.paper.acceptance}, times=c.times),
    ),
    "survival": _survival(
        "survival",
        _fit_survival,
        lambda c: Parts(networks={"before": c.before}, times=c.times, arrays={"floor": c.floor}),
    ),
    "survival_stopping": _survival(
        "survival_stopping",
        _fit_survival_stopping,
        lambda c: Parts(
            networks={"before": c.before.before, "inside": c.inside},
            times=c.times,
            arrays={"floor": c.before.floor, "price_scale": c.price_scale},
        ),
    ),
    "svip": _rule("svip", stops=True),
    "tapout": _bandit("tapout", stops=True),
    "thompson": _bandit("thompson"),
    "transformers_confidence": _rule("transformers_confidence", stops=True),
    "transformers_heuristic": _rule("transformers_heuristic"),
    "ucb1": _bandit("ucb1"),
    "ucbspec": _bandit("ucbspec"),
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


@cache
def default_options(name: str) -> Mapping[str, object]:
    """An agent's name and default settings: the content of `configs/agent/NAME.yaml`."""
    require_agent(name)
    content: dict[str, object] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def default_settings(name: str, **changes: object) -> Any:
    """An agent's default settings with some changes, checked.

    Raises:
        ConfigError: if there is no such agent, or a change is unknown or wrong.

    >>> default_settings("fixed", gamma=2)
    FixedSettings(gamma=2)
    """
    return agent_settings({**default_options(name), **changes})[1]


def decides_token_by_token(name: str, settings: Any, decides: str = "per_step") -> bool:
    """Whether an agent's controller is a `StoppingController`.

    Args:
        name: Of the agent.
        settings: Its settings.
        decides: `env.decides`, which matters to learners alone.
    """
    agent = AGENTS[name]
    if agent.make is None:
        return decides == "per_token"
    return agent.stops or (name == "gammatune" and settings.threshold > 0)


def require_batch(name: str, settings: Any, batch: int, decides: str = "per_step") -> None:
    """Passes if an agent can learn and be judged on the times of a batch.

    Args:
        name: Of the agent.
        settings: Its settings.
        batch: `cost.batch`.
        decides: `env.decides`.

    Raises:
        ConfigError: if it decides token by token and `batch` is above 1.
    """
    if decides_token_by_token(name, settings, decides):
        require_single_request(f"agent {name}", batch)


def make_controller(name: str, settings: Any, data: TrainingData) -> Controller:
    """Makes a controller that needs no environment to learn in.

    Raises:
        ConfigError: if it does not fit the data.
    """
    agent = AGENTS[name]
    assert agent.make is not None
    require_batch(name, settings, data.cost.batch)
    if data.hide and not agent.hides:
        able = sorted(n for n, other in AGENTS.items() if other.hides or other.make is None)
        raise ConfigError(f"Expected env.hide for an agent of {able}, got {list(data.hide)} for {name!r}.")
    return agent.make(settings, data)


def with_cost_table(
    name: str, settings: Any, controller: Controller, cost: CostTable, compressions: Sequence[str]
) -> Controller:
    """Gives a controller the times of another cost table; one that carries none is returned as it is.

    Args:
        name: Of the agent.
        settings: It was made with.
        controller: From `make_controller`.
        cost: The other table.
        compressions: Whose times it is given, those among them too that it has not seen.
    """
    agent = AGENTS[name]
    parts = agent.parts(controller)
    if parts.times is None or agent.restore is None:
        return controller
    times = StepTimes.of(cost, compressions, gamma_max=parts.times.verify_s.shape[1] - 1)
    return agent.restore(settings, agent.with_times(parts, times))


def begin_learner(name: str, settings: Any, data: TrainingData) -> Controller:
    """Makes an online learner that has seen no request; how it sees observations comes from the train prompts.

    Raises:
        ConfigError: if the agent does not learn online.
    """
    begin = AGENTS[name].begin
    if begin is None:
        known = sorted(other for other, agent in AGENTS.items() if agent.begin is not None)
        raise ConfigError(f"Expected an agent that learns online, of {known}, got {name!r}.{nearest(name, known)}")
    return begin(settings, data)
