# SPDX-License-Identifier: Apache-2.0
"""Which agents there are: one name, one class of settings each."""

from collections.abc import Mapping
from dataclasses import dataclass

from agents.best_fixed import BestFixedGamma
from agents.fixed import FixedGamma
from agents.ppo_settings import PPOSettings
from agents.settings import build_settings
from speckv.cost import CostTable
from speckv.errors import ConfigError, nearest
from speckv.traces import TraceSet


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSettings:
    """Of `fixed`: its speculation length, in tokens."""

    gamma: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFixedSettings:
    """Of `best_fixed`: nothing to set, it is tuned on the train prompts."""


RuleSettings = FixedSettings | BestFixedSettings
AgentSettings = RuleSettings | PPOSettings

AGENTS: Mapping[str, type[AgentSettings]] = {
    "best_fixed": BestFixedSettings,
    "fixed": FixedSettings,
    "ppo": PPOSettings,
}


def require_agent(name: str) -> None:
    """Passes if there is an agent of that name.

    Raises:
        ConfigError: listing the agents, and naming the nearest.

    >>> require_agent("pop")
    Traceback (most recent call last):
    speckv.errors.ConfigError: Expected an agent of ['best_fixed', 'fixed', 'ppo'], got 'pop'. Did you mean 'ppo'?
    """
    known = sorted(AGENTS)
    if name not in AGENTS:
        raise ConfigError(f"Expected an agent of {known}, got {name!r}.{nearest(name, known)}")


def agent_settings(options: Mapping[str, object]) -> tuple[str, AgentSettings]:
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
    settings: AgentSettings = build_settings(AGENTS[name], rest, "agent")
    return name, settings


def make_rule(settings: RuleSettings, train: TraceSet, cost: CostTable) -> FixedGamma | BestFixedGamma:
    """Makes a controller that needs no environment to learn in."""
    if isinstance(settings, FixedSettings):
        return FixedGamma(settings.gamma)
    return BestFixedGamma.tune(train, cost)
