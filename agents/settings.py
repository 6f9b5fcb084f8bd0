# SPDX-License-Identifier: Apache-2.0
"""Settings as typed, checked dataclasses: what a composed config becomes before any work begins."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agents.live.settings import LiveSettings
from speckv.errors import ConfigError, nearest

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Which recordings.

    Attributes:
        traces: Name of a shipped trace or path of a trace file.
        compressions: Which to keep; None keeps all.
        tasks: Which to keep; None keeps all.
        validation_fraction: Share of train prompts held out to choose the best checkpoint, in (0, 1).
    """

    traces: str
    compressions: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    validation_fraction: float = 0.2

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(
            0 < self.validation_fraction < 1, "data.validation_fraction", "between 0 and 1", self.validation_fraction
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSettings:
    """Which clock, at which load.

    Attributes:
        table: Name of a shipped cost table or path of one.
        batch: Sequences that decode together; the table must cover it.
    """

    table: str
    batch: int = 1

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.batch >= 1, "cost.batch", "1 or more", self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSettings:
    """How recordings become an environment.

    Attributes:
        gamma_max: Largest gamma on offer.
        budget: Token budget of an episode; None takes the recording's.
        acceptance: "recorded", or "rejection" to draw acceptance anew each episode.
        decides: "per_step" for `SpecKV/GammaSelection-v0`, "per_token" for `SpecKV/DraftStopping-v0`.
    """

    gamma_max: int = 16
    budget: int | None = None
    acceptance: str = "recorded"
    decides: str = "per_step"

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.decides in ("per_step", "per_token"), "env.decides", "per_step or per_token", self.decides)
        _require(1 <= self.gamma_max <= 16, "env.gamma_max", "from 1 to 16", self.gamma_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """What a step is worth.

    Attributes:
        name: One of the environment's rewards.
        token_cost: `tokens_minus_cost` alone: what one drafted token costs, in tokens, or "auto".
        lambda_decay: `lambda_throughput` alone: share of lambda that survives one rollout, in [0, 1).
    """

    name: str = "throughput"
    token_cost: float | str = "auto"
    lambda_decay: float = 0.9

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(0 <= self.lambda_decay < 1, "reward.lambda_decay", "in [0, 1)", self.lambda_decay)
        valid = self.token_cost == "auto" if isinstance(self.token_cost, str) else self.token_cost >= 0
        _require(valid, "reward.token_cost", 'a number from 0 up, or "auto"', self.token_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """When and how to evaluate.

    Attributes:
        every_steps: Environment steps, over all environments together, between evaluations on validation prompts.
        num_resamples: Bootstrap resamples of the final table.
    """

    every_steps: int = 50_000
    num_resamples: int = 10_000

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.every_steps >= 1, "eval.every_steps", "1 or more", self.every_steps)
        _require(self.num_resamples >= 1, "eval.num_resamples", "1 or more", self.num_resamples)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Everything that decides a training run.

    Attributes:
        agent: Name and hyper-parameters, checked by the agent's own constructor.
        data: Recordings.
        cost: Clock.
        env: Environment.
        reward: Reward.
        eval: Evaluation.
        seed: Of everything random.
        threads: PyTorch threads; more than one is slower on small networks, and far slower on a busy machine.
        runs_dir: Where run folders go.
        output: The run folder itself; None names one after agent, cost table, date and seed.
        resume: Run folder to continue.
        live: Given, real models decode in place of recordings.
        model: The pair that decodes live; checked where it is loaded.
        init_from: Run folder, or name of a shipped policy, that live learning begins with.
    """

    agent: Mapping[str, object]
    data: DataSettings
    cost: CostSettings
    env: EnvSettings = field(default_factory=EnvSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    seed: int = 0
    threads: int = 1
    runs_dir: str = "runs"
    output: str | None = None
    resume: str | None = None
    live: LiveSettings | None = None
    model: Mapping[str, object] | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        """Checks ranges, and that nothing is asked of a replay that live decoding alone can do."""
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require(self.threads >= 1, "threads", "1 or more", self.threads)
        if self.live is None:
            for name in ("model", "init_from"):
                _require(getattr(self, name) is None, name, "null without env=live", getattr(self, name))
        else:
            _require(self.model is not None, "model", "to name a pair with env=live", self.model)
            _require((self.env.budget or 0) >= 2, "env.budget", "2 tokens or more with env=live", self.env.budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSettings:
    """Of the SpecKV paper's study.

    Attributes:
        folder: Holds the paper's result files.
        num_seeds: Splits and networks to average over.
    """

    folder: str
    num_seeds: int = 5

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.num_seeds >= 1, "paper.num_seeds", "1 or more", self.num_seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """Everything that decides an evaluation.

    Attributes:
        data: Recordings.
        cost: Clock.
        controllers: Run folders or exported policies; runs that differ by their seed alone count as one controller.
            None takes the latest run on this cost table.
        agents: Agents to make on the train prompts and add, with their default settings; "all" for every one.
        tuned: Whether agents that have a grid are added tuned on the train prompts as well.
        seed: Of the bootstrap and the tests.
        num_resamples: Of the bootstrap.
        runs_dir: Where run folders are looked for.
        output: Where results go; None means the run folder, or `runs_dir/evaluate-<cost>` without one.
        paper: Asks for the SpecKV paper's study in place of a comparison.
    """

    data: DataSettings
    cost: CostSettings
    controllers: tuple[str, ...] | None = None
    agents: tuple[str, ...] | str = ()
    tuned: bool = False
    seed: int = 0
    num_resamples: int = 10_000
    runs_dir: str = "runs"
    output: str | None = None
    paper: PaperSettings | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require(self.num_resamples >= 1, "num_resamples", "1 or more", self.num_resamples)


def hyperparameters(settings: object) -> dict[str, str | int | float]:
    """An agent's settings for TensorBoard: numbers as they are, lists of them as text.

    >>> hyperparameters(CostSettings(table="cpu-2core"))
    {'table': 'cpu-2core', 'batch': 1}
    """
    assert dataclasses.is_dataclass(settings)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {k: "x".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}


def _require(valid: bool, key: str, expected: str, got: object) -> None:
    if not valid:
        raise ConfigError(f"Expected {key} {expected}, got {got!r}.")


def build_settings(cls: type[T], content: Mapping[str, object], where: str = "") -> T:
    """Fills a dataclass from plain data, strictly.

    Args:
        cls: A dataclass of scalars, tuples, mappings and dataclasses.
        content: Plain values, as a config file holds them.
        where: Dotted path of `content`, for messages.

    Returns:
        The dataclass.

    Raises:
        ConfigError: naming the key, if one is unknown, missing or of the wrong type.

    >>> build_settings(CostSettings, {"tabel": "cpu-2core"})
    Traceback (most recent call last):
    speckv.errors.ConfigError: Unknown setting 'tabel'; known here: ['table', 'batch']. Did you mean 'table'?
    """
    prefix = f"{where}." if where else ""
    assert dataclasses.is_dataclass(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in content:
        if key not in known:
            raise ConfigError(f"Unknown setting {prefix + str(key)!r}; known here: {known}.{nearest(str(key), known)}")
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if item.name not in content and not optional:
            raise ConfigError(f"Expected a value for {prefix + item.name!r}, found none.")
    values = {name: _convert(hints[name], value, prefix + name) for name, value in content.items()}
    return typing.cast(T, cls(**values))


def _convert(hint: object, value: object, where: str) -> object:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"Expected {where} to be a group of settings, got {value!r}.")
        return build_settings(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], v, f"{where}[{k}]") for k, v in enumerate(value))
    if origin is not None and isinstance(value, Mapping):
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is not type(value):
        name = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
        raise ConfigError(f"Expected {where} to be of type {name}, got {value!r}.")
    return value


def _convert_union(options: tuple[object, ...], value: object, where: str) -> object:
    if value is None and type(None) in options:
        return None
    groups = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(value, Mapping) and len(groups) == 1:
        return _convert(groups[0], value, where)  # its own error says more
    problems: list[ConfigError] = []
    for option in options:
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            problems.append(error)
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise ConfigError(f"Expected {where} to be of type {wanted}, got {value!r}.") from problems[0]
