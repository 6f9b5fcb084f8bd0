# SPDX-License-Identifier: Apache-2.0
"""Checked settings of `speckv train` and `speckv evaluate`; `configs/` explains them and holds the defaults."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from speckv.errors import ConfigError
from speckv.observation import hidden_columns

_UNSAFE = re.compile(r"[^a-z0-9.]+")
_LETTER_OR_DIGIT = re.compile(r"[a-z0-9]")  # without one, the folder of an arm would be the study's or its parent
_RANGE = {"low", "high", "log", "step"}
_FIXED_IN_A_SEARCH = (
    *("cost", "data", "eval", "learn", "live", "model", "output", "runs_dir", "search", "seed", "seeds", "study"),
)
"""Settings that all trials of a search share."""


def _require(valid: bool, key: str, expected: str, got: object) -> None:
    if not valid:
        raise ConfigError(f"Expected {key} {expected}, got {got!r}.")


def _require_positive(settings: object, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value >= 1, f"{prefix}{name}", "1 or more", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Recordings: a shipped name or a path, and which of its prompts; see configs/data."""

    traces: str
    compressions: tuple[str, ...] | None
    tasks: tuple[str, ...] | None
    validation_fraction: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(
            0 < self.validation_fraction < 1, "data.validation_fraction", "between 0 and 1", self.validation_fraction
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSettings:
    """The clock; see configs/cost."""

    table: str
    batch: int
    known: bool

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require_positive(self, "cost.", "batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSettings:
    """The environment; see configs/env.

    Attributes:
        gamma_max: Cut to that of the recordings.
        clocks: Above 0, number of made-up cost tables to learn on.
        hide: Features, or groups of them, that networks do not use.
    """

    gamma_max: int
    budget: int | None
    acceptance: str
    decides: str
    clocks: int
    hide: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.decides in ("per_step", "per_token"), "env.decides", "per_step or per_token", self.decides)
        _require(1 <= self.gamma_max <= 16, "env.gamma_max", "from 1 to 16", self.gamma_max)
        _require(self.clocks >= 0, "env.clocks", "0 or more", self.clocks)
        hidden_columns(self.hide)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """The reward of a step; see configs/reward. `token_cost` is for `tokens_minus_cost` alone."""

    name: str
    token_cost: float | str | None = None
    lambda_decay: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(0 <= self.lambda_decay < 1, "reward.lambda_decay", "in [0, 1)", self.lambda_decay)
        valid = self.token_cost in (None, "auto") or (not isinstance(self.token_cost, str) and self.token_cost >= 0)
        _require(valid, "reward.token_cost", 'a number from 0 up, or "auto"', self.token_cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """When and how to evaluate; see configs/train.yaml."""

    every_steps: int
    num_resamples: int
    on_test: bool

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require_positive(self, "eval.", "every_steps", "num_resamples")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """Arms, name -> overrides, each trained with every seed and compared with the first."""

    name: str
    question: str
    arms: Mapping[str, object]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Checks the overrides, and that the arms' folders differ."""
        _require(bool(self.arms), "study.arms", "to name one arm or more", self.arms)
        for arm, overrides in self.arms.items():
            valid = isinstance(overrides, list | tuple) and all(isinstance(o, str) for o in overrides)
            _require(valid, f"study.arms.{arm}", "to list overrides such as agent.gamma=4", overrides)
        folders = [self.folder_of(arm) for arm in self.arms]
        valid = len(set(folders)) == len(folders) and all(map(_LETTER_OR_DIGIT.search, folders))
        _require(valid, "names of arms", "that differ in letters or digits", list(self.arms))

    def overrides(self, arm: str) -> tuple[str, ...]:
        """Overrides of one arm."""
        overrides = self.arms[arm]
        assert isinstance(overrides, list | tuple)
        return tuple(map(str, overrides))

    @staticmethod
    def folder_of(arm: str) -> str:
        """Name of an arm's folder.

        >>> StudySettings.folder_of("without past signals")
        'without-past-signals'
        """
        return _UNSAFE.sub("-", arm.lower()).strip("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """A search for hyper-parameters.

    Attributes:
        space: Setting -> its values: `{low, high}` of numbers, with `log: true` or `step` if wanted, or `{choices}`.
        trials: In total, those before a resumption included.
        warm_up: First trials, drawn at random and never pruned.
        top: Best trials that are trained again with `final_seeds`, beside the shipped settings.
    """

    name: str
    space: Mapping[str, object]
    trials: int
    warm_up: int = 8
    top: int = 3
    final_seeds: tuple[int, ...] = (101, 102, 103)

    def __post_init__(self) -> None:
        """Checks ranges, and that every setting has values."""
        _require_positive(self, "search.", "trials", "warm_up", "top")
        seeds = self.final_seeds
        valid = bool(seeds) and min(seeds) >= 0 and len(set(seeds)) == len(seeds)
        _require(valid, "search.final_seeds", "to list seeds of 0 or more, each once", seeds)
        _require(bool(self.space), "search.space", "to name one setting or more", self.space)
        for key, values in self.space.items():
            fixed = key.lstrip("+~").split(".")[0] in _FIXED_IN_A_SEARCH
            _require(not fixed, "search.space", "to leave alone what trials are judged on and where they go", key)
            _check_values(key, values)


def _check_values(key: str, values: object) -> None:
    valid = isinstance(values, Mapping) and (_is_choice(values) or _is_range(values))
    expected = (
        "to be {choices}, or {low, high} of numbers with low < high, and beside them `log: true` where both are above "
        "0, or a `step` above 0"
    )
    _require(valid, f"search.space.{key}", expected, values)


def _is_choice(values: Mapping[str, Any]) -> bool:
    return set(values) == {"choices"} and isinstance(values["choices"], list | tuple) and bool(values["choices"])


def _is_range(values: Mapping[str, Any]) -> bool:
    if not {"low", "high"} <= set(values) <= _RANGE:
        return False
    low, high, step, log = values["low"], values["high"], values.get("step", 1), values.get("log", False)
    if not all(type(number) in (int, float) for number in (low, high, step)) or not (low < high and step > 0):
        return False
    whole = type(low) is type(high) is int
    return not (log and ("step" in values or low <= 0)) and not (whole and type(step) is not int)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnSettings:
    """Differences between the data to learn from and to test on; none by default.

    Attributes:
        prompts: Number of train prompts of each task; validation prompts are unaffected.
        reclock: Whether a controller with step times gets those of the tested cost table, new compressions included.
    """

    traces: str | None
    compressions: tuple[str, ...] | None
    tasks: tuple[str, ...] | None
    prompts: int | None
    cost: str | None
    reclock: bool

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.prompts is None or self.prompts >= 1, "learn.prompts", "1 or more, or null", self.prompts)

    @property
    def changes(self) -> bool:
        """Whether there is any difference."""
        return self != AS_TESTED


AS_TESTED = LearnSettings(traces=None, compressions=None, tasks=None, prompts=None, cost=None, reclock=False)
"""No difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How live requests are decoded and compared; see configs/env/live.yaml."""

    prompts: tuple[str, ...] | None
    max_prompt_tokens: int
    requests: int
    sampling: Mapping[str, object]
    heldout: int
    fixed_gammas: tuple[int, ...]
    recent: int
    threads: int | None

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require_positive(self, "live.", "max_prompt_tokens", "requests", "recent")
        _require(self.heldout >= 0, "live.heldout", "0 or more", self.heldout)
        _require(self.threads is None or self.threads >= 1, "live.threads", "1 or more, or null", self.threads)
        valid = bool(self.fixed_gammas) and min(self.fixed_gammas) >= 1
        _require(valid, "live.fixed_gammas", "to list lengths of 1 or more", self.fixed_gammas)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All settings of a training run; see configs/train.yaml.

    Attributes:
        seeds: A number of seeds, counted from 0, or a list; a run for each.
        processes: Number of simultaneous runs of a study or a search; None is one per core.
    """

    agent: Mapping[str, object]
    data: DataSettings
    cost: CostSettings
    env: EnvSettings
    reward: RewardSettings
    eval: EvalSettings
    seed: int
    threads: int
    runs_dir: str
    output: str | None
    resume: str | None
    live: LiveSettings | None = None
    model: Mapping[str, object] | None = None
    init_from: str | None
    learn: LearnSettings
    study: StudySettings | None
    search: SearchSettings | None
    seeds: tuple[int, ...] | int | None
    processes: int | None

    def __post_init__(self) -> None:
        """Checks ranges, and that settings of live decoding and of replay are not mixed."""
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require_positive(self, "", "threads")
        if self.live is None:
            for name in ("model", "init_from"):
                _require(getattr(self, name) is None, name, "null without env=live", getattr(self, name))
        else:
            _require(self.model is not None, "model", "to name a pair with env=live", self.model)
            _require((self.env.budget or 0) >= 2, "env.budget", "2 tokens or more with env=live", self.env.budget)
            _require(not self.env.hide, "env.hide", "empty with env=live", self.env.hide)
            recorded = self.env.acceptance == "recorded"
            _require(recorded, "env.acceptance", "recorded with env=live", self.env.acceptance)
            _require(not self.env.clocks, "env.clocks", "0 with env=live, where time is real", self.env.clocks)
            _require(not self.learn.changes, "learn", "to change nothing with env=live", self.learn)
            _require(not self.is_study, "seeds and study", "null with env=live", self.seeds or self.study)
            _require(self.search is None, "search", "null with env=live", self.search)
        _require(self.processes is None or self.processes >= 1, "processes", "1 or more, or null", self.processes)
        _require(not (self.is_study and self.search), "search", "null beside seeds or a study", self.search)
        fresh = self.search is None or self.seed not in self.search.final_seeds
        _require(fresh, "search.final_seeds", "to be seeds that the search has not seen", self.seed)
        single = not (self.is_study or self.search)
        _require(single or self.resume is None, "resume", "null: name the folder in output", self.resume)
        listed = self.all_seeds
        got = listed if self.seeds is None else self.seeds  # a study may have its own
        _require(bool(listed) and min(listed) >= 0, "seeds", "at least one, 0 or more", got)
        _require(len(set(listed)) == len(listed), "seeds", "each once", got)

    @property
    def is_study(self) -> bool:
        """Whether there are several runs to compare."""
        return self.study is not None or self.seeds is not None

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        if self.seeds is None:
            return self.study.seeds if self.study is not None else (self.seed,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSettings:
    """The SpecKV paper's study; see configs/experiment/speckv_paper.yaml."""

    folder: str
    num_seeds: int

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require_positive(self, "paper.", "num_seeds")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSettings:
    """All settings of an evaluation; see configs/evaluate.yaml."""

    data: DataSettings
    cost: CostSettings
    controllers: tuple[str, ...] | None
    agents: tuple[str, ...]
    tuned: bool
    seed: int
    num_resamples: int
    runs_dir: str
    output: str | None
    paper: PaperSettings | None

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require_positive(self, "", "num_resamples")


def hyperparameters(settings: object) -> dict[str, str | int | float]:
    """An agent's settings for TensorBoard: numbers as they are, lists of them as text.

    >>> hyperparameters(CostSettings(table="cpu-2core", batch=1, known=True))
    {'table': 'cpu-2core', 'batch': 1, 'known': True}
    """
    assert dataclasses.is_dataclass(settings)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    values |= values.pop("values", {})  # of a class of the user's own
    return {k: "x".join(map(str, v)) if isinstance(v, tuple | list) else v for k, v in values.items()}
