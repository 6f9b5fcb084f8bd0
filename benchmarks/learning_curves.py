# SPDX-License-Identifier: Apache-2.0
"""How many samples it takes: PPO, supervised models and bandits on the same prompts, scored on the same others.

A sample is an environment step for PPO, a decode step for the others: token by token, PPO makes several steps of each
decode step. What only measures the observations' mean and deviation is counted for nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.study_arms import Arm, run_arm
from benchmarks.study_store import Record
from speckv.agents.bandits.base import Bandit
from speckv.agents.bandits.hazard import HazardThompson
from speckv.agents.bandits.linear import LinThompson
from speckv.agents.bandits.making import measure_scaling
from speckv.agents.registry import default_settings
from speckv.agents.runs.task import Task, Validator, load_task
from speckv.agents.survival.controllers import SurvivalGamma, SurvivalStopping
from speckv.agents.survival.fit import (
    EVERYDAY_GAMMAS,
    RandomGammaSampler,
    before_steps,
    collect,
    fit_probabilities,
    inside_steps,
)
from speckv.commands import train as program
from speckv.commands.app import compose_checked
from speckv.cost.times import StepTimes
from speckv.evaluation.plots import INK, PALETTE
from speckv.evaluation.replays import compile_pair
from speckv.replay import VisitedStates, replay_stream
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller, FloatArray, IntArray, StepOutcome

POINTS = 40
"""Evaluations of PPO along a run."""
FIRST, GROWTH = 250, 2.0
"""Smallest number of samples of the other learners, and the factor from one to the next."""
SMALLEST_BATCH, BATCHES_A_PASS = 64, 16
"""Few samples come in smaller minibatches, so that fitting them takes some updates too."""
PANELS = {"once a step": "per_step", "token by token": "per_token"}
COLOURS = dict(zip(("ppo", "hazard_thompson", "survival", "lints"), PALETTE, strict=False))
COLOURS["survival_stopping"] = COLOURS["survival"]
PPO = (
    Arm(name="ppo/per_step", overrides=("agent=ppo",)),
    Arm(name="ppo/per_token", overrides=("experiment=ppo_stopping",)),
)


def jobs(cost: str, steps: int, seeds: Sequence[int], num_resamples: int) -> Mapping[str, Callable[[], Record]]:
    """Key -> what makes its record."""
    made: dict[str, Callable[[], Record]] = {}
    for seed in seeds:
        for arm in PPO:
            made[f"{arm.name}/seed{seed}"] = partial(
                run_arm, arm, cost=cost, steps=steps, seed=seed, evaluations=POINTS, num_resamples=num_resamples
            )
        for name in ("survival", "survival_stopping"):
            decides = "per_token" if name == "survival_stopping" else "per_step"
            made[f"{name}/{decides}/seed{seed}"] = partial(supervised, name, cost=cost, most=steps, seed=seed)
        for name in ("hazard_thompson", "lints"):
            made[f"{name}/per_step/seed{seed}"] = partial(online, name, cost=cost, most=steps, seed=seed)
    return made


def _load(cost: str) -> tuple[Task, Validator]:
    settings = program.settings_from(compose_checked(program.NAME, [f"cost={cost}"]))
    task = load_task(settings.data, settings.cost)
    return task, Validator(task.validation, task.cost, task.best_fixed_gammas)


def sizes(most: int) -> list[int]:
    """Numbers of samples up to the most there are, evenly spaced on a log axis but for the last.

    >>> sizes(1500)
    [250, 500, 1500]
    """
    count = int(np.log(max(most / FIRST, 1.0)) / np.log(GROWTH)) + 1
    return [*(int(FIRST * GROWTH**k) for k in range(count - 1)), most]


def _point(samples: int, validator: Validator, controller: Controller) -> Record:
    score = validator.score(controller)
    return {"step": samples, "vs_best_fixed": score.speedup_vs_best_fixed} | {
        f"vs_best_fixed_{name}": value for name, value in score.by_compression.items()
    }


def supervised(name: str, *, cost: str, most: int, seed: int) -> Record:
    """Fits survival models to more and more decode steps, drawn from those that a random and two constants make."""
    task, validator = _load(cost)
    survival = default_settings("survival")
    compiled, compiled_cost = compile_pair(task.learning, task.cost)
    rng = np.random.default_rng(seed)
    times = StepTimes.of(task.cost, task.learning.compressions, gamma_max=compiled.gamma_max)
    met: list[Controller] = [
        RandomGammaSampler(rng, compiled.gamma_max),
        *(ConstantGamma(gamma) for gamma in EVERYDAY_GAMMAS),
    ]
    states = collect(compiled, compiled_cost, met)
    order, points = rng.permutation(len(states.limits)), []
    for size in sizes(min(most, len(order))):
        some = take(states, order[:size])
        batch = int(np.clip(size // BATCHES_A_PASS, SMALLEST_BATCH, survival.batch_size))
        settings = replace(survival, batch_size=batch)
        fitted: Controller = SurvivalGamma(
            fit_probabilities(before_steps(some, compiled.gamma_max), settings, seed=seed), times
        )
        if name == "survival_stopping":
            assert isinstance(fitted, SurvivalGamma)
            inside = fit_probabilities(inside_steps(some, compiled, rng), settings, seed=seed)
            fitted = SurvivalStopping(fitted.before, inside, times)
        points.append(_point(size, validator, fitted))
    return {"validation": points, "best": max(points, key=lambda point: float(point["vs_best_fixed"]))}


def take(states: VisitedStates, rows: IntArray) -> VisitedStates:
    """Some of the states."""
    return VisitedStates(
        observations=states.observations[rows],
        places=states.places[rows],
        limits=states.limits[rows],
        accepted=states.accepted[rows],
    )


class Frozen:
    """A bandit that decides with what it has learned so far, and learns no more."""

    charges_decision = True

    def __init__(self, bandit: Bandit) -> None:
        self.name, self._bandit = bandit.name, bandit

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, observation: FloatArray) -> int:
        """As the bandit does."""
        return self._bandit.act(observation)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """As the bandit does."""
        return self._bandit.act_batch(observations)

    def learn(self, outcome: StepOutcome) -> None:
        """Learns nothing."""


def online(name: str, *, cost: str, most: int, seed: int) -> Record:
    """Streams the prompts through a bandit once, and looks at it, frozen, along the way."""
    task, validator = _load(cost)
    compiled, compiled_cost = compile_pair(task.learning, task.cost)
    times = StepTimes.of(task.cost, task.learning.compressions, gamma_max=compiled.gamma_max)
    scaling = measure_scaling(compiled, compiled_cost)
    bandit: Bandit = (
        HazardThompson(default_settings("hazard_thompson"), times, scaling, seed)
        if name == "hazard_thompson"
        else LinThompson(default_settings("lints"), times, scaling, seed)
    )
    seen, points, due = 0, [], sizes(most)
    order = np.random.default_rng(seed).permutation(len(compiled)).tolist()
    for number, sequence in enumerate(order):
        if seen > most:
            break
        seen += int(replay_stream(bandit, compiled, compiled_cost, order=[sequence]).num_steps.sum())
        if number == len(order) - 1 or (due and seen >= due[0]):
            due = [size for size in due if size > seen]
            state = bandit.rng.bit_generator.state
            points.append(_point(seen, validator, Frozen(bandit)))
            bandit.rng.bit_generator.state = state
    return {"validation": points, "best": max(points, key=lambda point: float(point["vs_best_fixed"]))}


def panel(ax: Axes, curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], title: str) -> Axes:
    """Lines of throughput over the best fixed gamma against samples, a colour a learner and a line a seed.

    Args:
        ax: Where to draw.
        curves: Learner -> one curve a seed.
        title: Of the panel.
    """
    for name, seeds in curves.items():
        for number, curve in enumerate(seeds):
            points = [(p["step"], p["vs_best_fixed"]) for p in curve if p["step"] > 0]
            label = name.replace("_", " ") if number == 0 else None
            ax.plot(
                *zip(*points, strict=True), color=COLOURS[name], label=label, marker=".", markersize=4, linewidth=1.2
            )
    ax.axhline(1.0, color=INK, linewidth=1, linestyle="--")
    ax.set_xscale("log")
    ax.set_title(title, fontsize=10, loc="left")
    ax.set_xlabel("samples seen (steps)")
    ax.grid(color="#E4E4E4", linewidth=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return ax


def draw(records: Mapping[str, Record], path: Path, cost: str) -> None:
    """Draws a panel for each granularity."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (title, decides) in zip(axes, PANELS.items(), strict=True):
        curves: dict[str, list[Sequence[Mapping[str, float]]]] = {}
        for key, record in sorted(records.items()):
            name, how, _ = key.split("/")
            if how == decides and "validation" in record:
                curves.setdefault(name, []).append(record["validation"])
        panel(ax, curves, f"{title}, {cost}")
    axes[0].set_ylabel("× best fixed gamma (validation)")
    axes[0].set_ylim(bottom=0.8)
    figure.savefig(path, dpi=150)
