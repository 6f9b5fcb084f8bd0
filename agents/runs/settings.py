# SPDX-License-Identifier: Apache-2.0
"""Settings as typed, checked dataclasses: what a composed config becomes before any work begins."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from speckv.errors import ConfigError
from speckv.observation import hidden_columns

_UNSAFE = re.compile(r"[^a-z0-9.]+")
_LETTER_OR_DIGIT = re.compile(r"[a-z0-9]")
"""Without one, the folder of an arm would be the study's own or its parent."""
_RANGE = {"low", "high", "log", "step"}
_FIXED_IN_A_SEARCH = (
    *("cost", "data", "eval", "learn", "live", "model", "output", "runs_dir", "search", "seed", "seeds", "study"),
)
"""Settings that all trials of a search share."""


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
        batch: Sequences that decode together; the table must cover it. Above 1, agents that decide token by token are
            refused: times of a batch hold where all rows draft alike.
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
        gamma_max: Largest gamma on offer; at most that of the recordings is used.
        budget: Token budget of an episode; None takes the recording's.
        acceptance: "recorded", or "rejection" to draw acceptance anew each episode.
        decides: "per_step" for `SpecKV/GammaSelection-v0`, "per_token" for `SpecKV/DraftStopping-v0`.
        hide: Features, or groups of them, that networks are not to see.
    """

    gamma_max: int = 16
    budget: int | None = None
    acceptance: str = "recorded"
    decides: str = "per_step"
    hide: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.decides in ("per_step", "per_token"), "env.decides", "per_step or per_token", self.decides)
        _require(1 <= self.gamma_max <= 16, "env.gamma_max", "from 1 to 16", self.gamma_max)
        hidden_columns(self.hide)


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
        on_test: Whether a run ends with the comparison on test prompts; a search looks at validation prompts alone.
    """

    every_steps: int = 50_000
    num_resamples: int = 10_000
    on_test: bool = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.every_steps >= 1, "eval.every_steps", "1 or more", self.every_steps)
        _require(self.num_resamples >= 1, "eval.num_resamples", "1 or more", self.num_resamples)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """Arms, each trained with every seed and compared with the first.

    Attributes:
        name: Of the study's folder and results.
        question: One sentence, printed above the table.
        arms: Name -> overrides of this arm alone.
        seeds: Of each arm, unless the command line has its own.
    """

    name: str
    question: str
    arms: Mapping[str, object]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Checks the arms: lists of overrides, with names that give different folders."""
        if not self.arms:
            raise ConfigError(f"Expected study.arms to name one arm or more, got none in {self.name!r}.")
        for arm, overrides in self.arms.items():
            if not isinstance(overrides, list | tuple) or not all(isinstance(o, str) for o in overrides):
                raise ConfigError(
                    f"Expected study.arms.{arm} to list overrides such as agent.gamma=4, got {overrides!r}."
                )
        folders = [self.folder_of(arm) for arm in self.arms]
        if len(set(folders)) < len(folders) or not all(map(_LETTER_OR_DIGIT.search, folders)):
            raise ConfigError(f"Expected names of arms that differ in letters or digits, got {list(self.arms)}.")

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
        name: Of the search's folder and of its Optuna study.
        space: Setting -> its values: `{low, high}` of numbers, with `log: true` or `step` if wanted, or `{choices}`.
        trials: In total, those before a resumption included.
        warm_up: First trials, drawn at random and never pruned.
        top: Best trials that are trained again with fresh seeds, beside the shipped settings.
        final_seeds: The fresh seeds; the trials use `seed`.
    """

    name: str
    space: Mapping[str, object]
    trials: int = 40
    warm_up: int = 8
    top: int = 3
    final_seeds: tuple[int, ...] = (101, 102, 103)

    def __post_init__(self) -> None:
        """Checks ranges, and that every setting has values."""
        for name in ("trials", "warm_up", "top"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected search.{name} 1 or more, got {getattr(self, name)}.")
        seeds = self.final_seeds
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ConfigError(f"Expected search.final_seeds to list seeds of 0 or more, each once, got {seeds}.")
        if not self.space:
            raise ConfigError("Expected search.space to name one setting or more, got none.")
        for key, values in self.space.items():
            if key.lstrip("+~").split(".")[0] in _FIXED_IN_A_SEARCH:
                raise ConfigError(
                    f"Expected search.space to leave alone what trials are judged on and where they go, got {key}."
                )
            _check_values(key, values)


def _check_values(key: str, values: object) -> None:
    if isinstance(values, Mapping):
        if set(values) == {"choices"} and isinstance(values["choices"], list | tuple) and values["choices"]:
            return
        if {"low", "high"} <= set(values) <= _RANGE and _is_range(values):
            return
    raise ConfigError(
        f"Expected search.space.{key} to be {{choices}}, or {{low, high}} of numbers with low < high, and beside them "
        f"`log: true` where both are above 0, or a `step` above 0, got {values!r}."
    )


def _is_range(values: Mapping[str, Any]) -> bool:
    low, high, step, log = values["low"], values["high"], values.get("step", 1), values.get("log", False)
    if not all(type(number) in (int, float) for number in (low, high, step)) or not (low < high and step > 0):
        return False
    whole = type(low) is type(high) is int
    return not (log and ("step" in values or low <= 0)) and not (whole and type(step) is not int)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnSettings:
    """Differences between what is learned on and what is tested on; by default there are none.

    Attributes:
        traces: Name of a shipped trace or path of one to learn from.
        prompts: Train prompts of each task to learn from, always the same ones; validation prompts stay as they are.
        cost: Name or path of the cost table to learn on.
        reclock: Whether a controller that carries step times gets those of `cost` for the test, of new compressions
            too.
    """

    traces: str | None = None
    compressions: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    prompts: int | None = None
    cost: str | None = None
    reclock: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.prompts is None or self.prompts >= 1, "learn.prompts", "1 or more, or null", self.prompts)

    @property
    def changes(self) -> bool:
        """Whether there is any difference."""
        return self != LearnSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How live requests are decoded and compared.

    Attributes:
        prompts: JSON Lines files or folders; None takes the shipped examples.
        max_prompt_tokens: Longer prompts are left out.
        requests: Number that an online learner learns from.
        sampling: Fields of `SamplingConfig`; greedy by default.
        heldout: Test prompts of the comparison at the end; 0 leaves it out.
        fixed_gammas: Arms of the comparison beside plain decoding and the learned controller.
        recent: Requests behind the figure "the last requests".
        threads: PyTorch threads; None keeps torch's own number, at most the usable cores.
    """

    prompts: tuple[str, ...] | None = None
    max_prompt_tokens: int = 1024
    requests: int = 40
    sampling: Mapping[str, object] = field(default_factory=dict)
    heldout: int = 3
    fixed_gammas: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    recent: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("max_prompt_tokens", "requests", "recent"):
            _require(getattr(self, name) >= 1, f"live.{name}", "1 or more", getattr(self, name))
        _require(self.heldout >= 0, "live.heldout", "0 or more", self.heldout)
        _require(self.threads is None or self.threads >= 1, "live.threads", "1 or more, or null", self.threads)
        valid = bool(self.fixed_gammas) and min(self.fixed_gammas) >= 1
        _require(valid, "live.fixed_gammas", "to list lengths of 1 or more", self.fixed_gammas)


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
        learn: What learning meets, where that is other than what is tested.
        study: Asks for many runs that are compared.
        search: Asks for a search for hyper-parameters.
        seeds: Asks for a run a seed: a number of them, counted from 0, or a list.
        processes: Runs at once of a study or of several seeds, one thread each; None takes one a core.
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
    learn: LearnSettings = field(default_factory=LearnSettings)
    study: StudySettings | None = None
    search: SearchSettings | None = None
    seeds: tuple[int, ...] | int | None = None
    processes: int | None = None

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
            _require(not self.env.hide, "env.hide", "empty with env=live", self.env.hide)
            _require(not self.learn.changes, "learn", "to change nothing with env=live", self.learn)
            _require(not self.is_study, "seeds and study", "null with env=live", self.seeds or self.study)
            _require(self.search is None, "search", "null with env=live", self.search)
        _require(self.processes is None or self.processes >= 1, "processes", "1 or more, or null", self.processes)
        _require(not (self.is_study and self.search), "search", "null beside seeds or a study", self.search)
        fresh = self.search is None or self.seed not in self.search.final_seeds
        _require(fresh, "search.final_seeds", "to be seeds that the search has not seen", self.seed)
        _require(
            not (self.is_study or self.search) or self.resume is None,
            "resume",
            "null: name the folder in output",
            self.resume,
        )
        listed = self.all_seeds
        said = listed if self.seeds is None else self.seeds  # a study may bring its own
        _require(bool(listed) and min(listed) >= 0, "seeds", "at least one, 0 or more", said)
        _require(len(set(listed)) == len(listed), "seeds", "each once", said)

    @property
    def is_study(self) -> bool:
        """Whether many runs are asked for."""
        return self.study is not None or self.seeds is not None

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        if self.seeds is None:
            return self.study.seeds if self.study is not None else (self.seed,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds


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
