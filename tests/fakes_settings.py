# SPDX-License-Identifier: Apache-2.0
"""Settings with the defaults of `configs/`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TypeVar

from speckv.agents.registry import AGENTS, default_settings
from speckv.agents.runs.settings import (
    CostSettings,
    DataSettings,
    EnvSettings,
    EvalSettings,
    EvaluateSettings,
    LearnSettings,
    LiveSettings,
    PaperSettings,
    RewardSettings,
    TrainSettings,
)
from speckv.commands import evaluate, train
from speckv.commands.app import compose_checked

T = TypeVar("T")


def shipped(kind: type[T], **changes: object) -> T:
    """Settings of a class with the shipped defaults, apart from some changes.

    An agent's class that several agents share has the defaults of the first.
    """
    found = _of_runs().get(kind)
    if found is None:
        found = default_settings(next(name for name, agent in AGENTS.items() if agent.settings_class is kind))
    assert isinstance(found, kind)
    return replace(found, **changes)  # type: ignore[type-var]


@cache
def _of_runs() -> Mapping[type, object]:
    whole = train.settings_from(compose_checked("train", []))
    live = train.settings_from(compose_checked("train", ["agent=linucb", "env=live"]))
    evaluation = evaluate.settings_from(compose_checked("evaluate", []))
    paper = evaluate.settings_from(compose_checked("evaluate", ["experiment=speckv_paper"]))
    return {
        TrainSettings: whole,
        EvaluateSettings: evaluation,
        DataSettings: whole.data,
        CostSettings: whole.cost,
        EnvSettings: whole.env,
        RewardSettings: whole.reward,
        EvalSettings: whole.eval,
        LearnSettings: whole.learn,
        LiveSettings: live.live,
        PaperSettings: paper.paper,
    }
