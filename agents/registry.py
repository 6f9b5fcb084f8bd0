# SPDX-License-Identifier: Apache-2.0
"""The agents: name -> the class of its controller and how it is made, imported at first use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speckv.agents.building import build_settings
from speckv.agents.own import KINDS, OwnController, OwnSettings, own_class, own_controller_class
from speckv.cost import CostTable, require_single_request
from speckv.cost.times import StepTimes
from speckv.errors import ConfigError, nearest
from speckv.importing import is_import_path
from speckv.types import GAMMA_MAX, Controller

if TYPE_CHECKING:
    from speckv.traces import TraceSet

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Inputs for making a controller.

    Attributes:
        hide: Features, or groups of them, that networks must not use.
        told: Whether it gets the times of the cost table; else it learns them while decoding.
    """

    train: "TraceSet"
    cost: CostTable
    seed: int
    hide: tuple[str, ...] = ()
    told: bool = True

    @property
    def times(self) -> StepTimes:
        """Times of steps at the compressions of the train prompts."""
        return StepTimes.of(self.cost, self.train.compressions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One kind of agent; classes and functions are named as "module:name".

    Attributes:
        controller: "" for a learner in an environment, whose policy is a network.
        settings: Class of a learner's settings; other agents' controllers name theirs.
        make: Function (settings, data) -> controller; "" for the class's own `make`.
        hides: Whether `make` uses `TrainingData.hide`.
        own: Whether `controller` is a class of the user's own.
    """

    controller: str = ""
    settings: str = ""
    make: str = ""
    online: bool = False
    hides: bool = False
    own: bool = False

    @property
    def in_environment(self) -> bool:
        """Whether it learns in an environment, step by step."""
        return not self.controller

    @property
    def controller_class(self) -> type[Any]:
        """Class of its controller."""
        found: type[Any] = own_controller_class(self.controller) if self.own else _load(self.controller)
        return found

    @property
    def settings_class(self) -> type[Any]:
        """Class of its settings."""
        found: type[Any] = _load(self.settings) if self.settings else self.controller_class.settings_class
        return found


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    found = vars(import_module(module))
    if name in found:
        return found[name]
    return next(one for one in found.values() if isinstance(one, type) and vars(one).get("kind") == name)


def _modules(folder: str, *others: str, online: bool = False) -> dict[str, Agent]:
    names = sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.py"))
    return {
        name: Agent(controller=f"speckv.agents.{folder}.{name}:{name}", online=online)
        for name in names
        if name not in ("__init__", "base", *others)
    }


def _bandit(path: str) -> Agent:
    return Agent(controller=f"speckv.agents.bandits.{path}", online=True)


def _learner(name: str) -> Agent:
    return Agent(settings=f"speckv.agents.rl.hyperparameters:{name}")


AGENTS: Mapping[str, Agent] = dict(
    sorted(
        {
            **_modules("rules"),
            **_modules("bandits", "arms", "calibrated", "hazard", "linear", "making", online=True),
            "best_fixed": Agent(controller="speckv.agents.constants:BestFixedGamma"),
            "fixed": Agent(controller="speckv.agents.constants:FixedGamma"),
            "per_request": Agent(
                controller="speckv.agents.per_request:PerRequestGamma", make="speckv.agents.constants:fit_per_request"
            ),
            "speckv_mlp": Agent(
                controller="speckv.agents.speckv_mlp.controllers:SpecKVMlp",
                make="speckv.agents.speckv_mlp.fit:fit_speckv_mlp",
            ),
            "speckv_mlp_cost": Agent(
                controller="speckv.agents.speckv_mlp.controllers:SpecKVMlpCost",
                make="speckv.agents.speckv_mlp.fit:fit_speckv_mlp_cost",
            ),
            "survival": Agent(
                controller="speckv.agents.survival.controllers:SurvivalGamma",
                make="speckv.agents.survival.fit:fit_survival",
                hides=True,
            ),
            "survival_stopping": Agent(
                controller="speckv.agents.survival.controllers:SurvivalStopping",
                make="speckv.agents.survival.fit:fit_survival_stopping",
                hides=True,
            ),
            "self_timed": Agent(
                controller="speckv.agents.self_timed:SelfTimedStopping",
                settings="speckv.agents.survival.controllers:SurvivalSettings",
                make="speckv.agents.survival.fit:fit_self_timed",
                hides=True,
            ),
            "self_timed_step": Agent(
                controller="speckv.agents.self_timed:SelfTimed",
                settings="speckv.agents.survival.controllers:SurvivalSettings",
                make="speckv.agents.survival.fit:fit_self_timed_step",
                hides=True,
            ),
            "self_timed_online": Agent(
                controller="speckv.agents.self_timed:SelfTimedStopping",
                settings="speckv.agents.bandits.calibrated:CalibratedSettings",
                make="speckv.agents.bandits.calibrated:make_self_timed",
            ),
            "calibrated_stopping": _bandit("calibrated:CalibratedStopping"),
            "exp3spec": _bandit("arms:Exp3Spec"),
            "hazard_thompson": _bandit("hazard:HazardThompson"),
            "hazard_thompson_discounted": _bandit("hazard:DiscountedHazardThompson"),
            "lints": _bandit("linear:LinThompson"),
            "linucb": _bandit("linear:LinUcb"),
            "neural_linear": _bandit("linear:NeuralLinear"),
            "thompson": _bandit("arms:GaussianThompson"),
            "ucb1": _bandit("arms:Ucb1"),
            "ucbspec": _bandit("arms:UcbSpec"),
            "a2c": _learner("A2CSettings"),
            "dqn": _learner("DQNSettings"),
            "ppo": _learner("PPOSettings"),
            "qr_dqn": _learner("QRDQNSettings"),
            "recurrent_ppo": _learner("RecurrentPPOSettings"),
        }.items()
    )
)


def find_agent(name: str) -> Agent:
    """The agent of a name, or that of a user's class named as "module:Class"; a ConfigError if there is none."""
    if is_import_path(name):
        return Agent(controller=name, own=True, online=bool(getattr(own_class(name), "learns", False)))
    known = sorted(AGENTS)
    if name not in AGENTS:
        hint = nearest(name, known)
        raise ConfigError(f'Expected an agent of {known}, or your own as "module:Class", got {name!r}.{hint}')
    return AGENTS[name]


def class_of(kind: str) -> type[Any] | None:
    """The class of a stored controller, or None if no agent has that kind: the entry point for `speckv`."""
    if kind in KINDS:
        return KINDS[kind]
    return AGENTS[kind].controller_class if kind in AGENTS and not AGENTS[kind].in_environment else None


def agent_settings(options: Mapping[str, object]) -> tuple[str, Any]:
    """Checks an agent's options: `name` and settings; those that are left out have the defaults of `configs/agent`."""
    name = options.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"Expected agent.name to be one of {sorted(AGENTS)}, got {name!r}.")
    agent = find_agent(name)
    content = {**({} if agent.own else _defaults(name)), **options}
    del content["name"]
    if agent.own:
        return name, OwnSettings(values=content)
    return name, build_settings(agent.settings_class, content, "agent")


def default_settings(name: str, **changes: object) -> Any:
    """An agent's default settings with some changes, checked; see `agent_settings`.

    >>> default_settings("fixed", gamma=2)
    FixedSettings(gamma=2)
    """
    return agent_settings({"name": name, **changes})[1]


@cache
def _defaults(name: str) -> Mapping[str, object]:
    import yaml  # late, because stored policies also run where it is not installed

    content: dict[str, object] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def decides_token_by_token(name: str, settings: Any, decides: str = "per_step") -> bool:
    """Whether an agent's controller is a `StoppingController`; for learners, `env.decides` decides that."""
    agent = find_agent(name)
    if agent.in_environment:
        return decides == "per_token"
    kind = agent.controller_class
    return hasattr(kind.variant(settings) if hasattr(kind, "variant") else kind, "go_on")


def require_batch(name: str, settings: Any, batch: int, decides: str = "per_step") -> None:
    """Refuses an agent that decides token by token if `batch` is above 1; see `decides_token_by_token`."""
    if decides_token_by_token(name, settings, decides):
        require_single_request(f"agent {name}", batch)


UNTOLD = {"survival": "self_timed_step", "survival_stopping": "self_timed"}
"""Agents whose fit uses the cost table, and what is made in their place without one; settings are the same."""


def make_controller(name: str, settings: Any, data: TrainingData) -> Controller:
    """Makes a controller that needs no environment; an online learner is trained on the train prompts once."""
    agent = find_agent(UNTOLD.get(name, name) if not data.told else name)
    assert not agent.in_environment
    require_batch(name, settings, data.cost.batch)
    if data.hide and not agent.hides:
        able = sorted(n for n, other in AGENTS.items() if other.hides or other.in_environment)
        raise ConfigError(f"Expected env.hide for an agent of {able}, got {list(data.hide)} for {name!r}.")
    if agent.own:
        return _make_own(name, settings, data, learns=agent.online)
    if agent.online:
        from speckv.agents.bandits import making  # late, because it needs recordings, and this module must not

        learner = _untold(making.begin(agent.controller_class, settings, data), data)
        making.train(learner, data)
        return learner
    make: Callable[[Any, TrainingData], Controller] = _load(agent.make) if agent.make else agent.controller_class.make
    return _untold(make(settings, data), data)


def _untold(controller: Controller, data: TrainingData) -> Controller:
    from speckv.agents.self_timed import untold

    if data.told:
        return controller
    return untold(controller, data.train.compressions, gamma_max=data.train.metadata.gamma_max)


def _make_own(path: str, settings: Any, data: TrainingData, *, learns: bool) -> Controller:
    controller = OwnController.create(path, settings, data)
    if learns:
        from speckv.agents.bandits import making

        making.train(controller, data)
    return controller


def begin_learner(name: str, settings: Any, data: TrainingData) -> Controller:
    """Makes an online learner before its first request; train prompts only scale its observations."""
    agent = find_agent(name)
    if not agent.online:
        known = sorted(other for other, agent in AGENTS.items() if agent.online)
        raise ConfigError(f"Expected an agent that learns online, of {known}, got {name!r}.{nearest(name, known)}")
    from speckv.agents.bandits import making

    return (
        OwnController.create(name, settings, data)
        if agent.own
        else making.begin(agent.controller_class, settings, data)
    )


# -- recordings that are shallower than `GAMMA_MAX`: what was not recorded cannot be drafted -------------------------

UNBOUNDED = ("gammatune", "transformers_heuristic")
"""Agents whose gamma grows up to `GAMMA_MAX`; none of their settings limits it."""
_LIMITS = ("gamma_max", "n_max")
_CHOICES = ("arms", "candidates", "gammas")


def within_depth(name: str, settings: Any, depth: int) -> Any:
    """Limits an agent's settings to the depth of the recordings; a ConfigError where that is impossible."""
    if depth >= GAMMA_MAX or is_import_path(name):
        return settings
    gamma = getattr(settings, "gamma", 0) if name == "fixed" else 0
    if name in UNBOUNDED or gamma > depth:
        longest = gamma or GAMMA_MAX
        raise ConfigError(
            f"Expected recordings of gamma_max {longest} for agent {name}, which drafts up to {longest} tokens, got "
            f"{depth}. Record them deeper, or choose another agent."
        )
    present = {f.name for f in fields(settings)}
    changed: dict[str, object] = {key: min(getattr(settings, key), depth) for key in _LIMITS if key in present}
    for key in _CHOICES:
        if key in present:
            changed[key] = kept = tuple(length for length in getattr(settings, key) if length <= depth)
            if not kept:
                raise ConfigError(
                    f"Expected agent.{key} to hold a length of at most {depth}, the gamma_max of the recordings, got "
                    f"{list(getattr(settings, key))}."
                )
            if key == "candidates":
                changed["start"] = min(settings.start, len(kept) - 1)
    return replace(settings, **changed)
