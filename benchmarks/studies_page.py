# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/results/learning.md, from the results of `make study` and `make regret`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_table import line, show_interval
from speckv.cost import CostTable, describe_clock, describe_fit

RESULTS = Path(__file__).resolve().parent / "results"
COSTS = ("rtx3090-paper", "cpu-2core")
DISCOUNTS = {"per_step": ("0", "0.9", "0.99", "1"), "per_token": ("0", "0.9", "0.97", "0.99", "1")}
REWARDS = {
    "per_step": ("throughput", "lambda_throughput", "tokens_minus_cost", "time", "tokens"),
    "per_token": ("lambda_throughput", "time"),
}
LEARNERS = ("ppo", "a2c", "dqn", "qr_dqn", "recurrent_ppo")
DEFAULTS = {"per_step": "throughput/0", "per_token": "lambda_throughput/0.97"}

Record = Mapping[str, Any]


def load(name: str) -> Record:
    """Reads one committed study."""
    content: Record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def rewards_table(runs: Mapping[str, Record], decides: str) -> str:
    """PPO on the test prompts: a row a reward, a column a discount."""
    rows = [["reward \\ discount", *DISCOUNTS[decides]], ["---"] * (1 + len(DISCOUNTS[decides]))]
    for reward in REWARDS[decides]:
        cells = [runs[f"ppo/{decides}/{reward}/{discount}/seed0"] for discount in DISCOUNTS[decides]]
        rows.append([f"`{reward}`", *(f"{run['test']['all']['estimate']:.3f}" for run in cells)])
    return "\n".join(line(row) for row in rows)


def learners_table(runs: Mapping[str, Record]) -> str:
    """Every learner at its defaults on the test prompts: a row a learner, a column a granularity."""
    rows = [["agent", "once a step", "token by token"], ["---"] * 3]
    for name in LEARNERS:
        found = [runs.get(f"{name}/{decides}/{default}/seed0") for decides, default in DEFAULTS.items()]
        rows.append([f"`{name}`", *(show_interval(run["test"]["all"]) if run else "" for run in found)])
    return "\n".join(line(row) for row in rows)


def regret_table(streams: Mapping[str, Record]) -> str:
    """Regret before and after the change, in time of the best constants, and requests to recover."""
    rows = [["learner", *(_title(stream) for stream in streams.values())], ["---"] * (1 + len(streams))]
    for name in next(iter(streams.values()))["learners"]:
        cells = []
        for stream in streams.values():
            learner = stream["learners"][name]
            halves = " / ".join(f"{100 * learner[half]:+.1f} %" for half in ("first_half", "second_half"))
            after = learner["after_the_change"]["requests"]
            cells.append(f"{halves}; {'not in the stream' if after is None else f'{after:.0f}'}")
        rows.append([f"`{name}`", *cells])
    return "\n".join(line(row) for row in rows)


def _title(stream: Record) -> str:
    phases = (f"{phase['task'] or 'all tasks'}, {phase['compression']}" for phase in stream["phases"])
    return f"{' → '.join(phases)} (`{stream['cost']}`)"


def clock(setting: Record) -> str:
    """What is known of the cost table that a study ran on.

    Args:
        setting: Of the study; the shipped table of that name was checked for it only if its times are the same.
    """
    table = CostTable.load(setting["cost"])
    same = table.sha256 == setting["cost_sha256"]
    return describe_clock(table.kind, table.checks if same else {"all": describe_fit(table.kind, None)})


def clocks_table(studies: Mapping[str, Record]) -> str:
    """How far each clock is to be trusted."""
    rows = [["clock", "times"], ["---"] * 2]
    rows += [[f"`{cost}`", clock(study["setting"])] for cost, study in studies.items()]
    return "\n".join(line(row) for row in rows)


def tables() -> dict[str, str]:
    """Heading -> table in Markdown."""
    studies = {cost: load(f"rl-study-{cost}") for cost in COSTS}
    found = {"Clocks": clocks_table(studies)}
    for cost in COSTS:
        runs = studies[cost]["runs"]
        for decides, how in (("per_step", "once a step"), ("per_token", "token by token")):
            found[f"PPO {how}, `{cost}`"] = rewards_table(runs, decides)
        found[f"Learners at one budget, `{cost}`"] = learners_table(runs)
    found["Regret"] = regret_table(load("regret")["streams"])
    return found
