# SPDX-License-Identifier: Apache-2.0
"""Comparisons of controllers on the test prompts, for `speckv evaluate` and for the end of `speckv train`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from speckv.agents.registry import (
    AGENTS,
    TrainingData,
    default_settings,
    find_agent,
    make_controller,
    require_batch,
    within_depth,
)
from speckv.agents.runs.console import Console
from speckv.agents.runs.run_folder import EVALUATION
from speckv.agents.runs.settings import EvaluateSettings
from speckv.agents.runs.task import load_cost, load_splits
from speckv.agents.runs.tuning import grids, tune
from speckv.agents.self_timed import untold
from speckv.cost import CostTable, require_single_request
from speckv.errors import CheckpointError, ConfigError
from speckv.evaluation.compare import Comparison, compare, require_comparable
from speckv.evaluation.replays import compile_pair, controller_sums, sample_observations, time_decisions
from speckv.evaluation.report import TEXT, make_timelines, save_report
from speckv.evaluation.results import headline
from speckv.evaluation.run_facts import RUN, find_seed_groups, read_fact, read_facts
from speckv.evaluation.summary import render_summary
from speckv.importing import is_import_path
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.runtime.matching import warn_of_differences
from speckv.runtime.policy import Policy, load_controller, named_apart
from speckv.runtime.shipped import WORD, shipped_for
from speckv.runtime.storage import find_policy
from speckv.traces import TraceSet
from speckv.types import GAMMA_MAX, Controller, StoppingController

logger = logging.getLogger(__name__)

EVERY_AGENT = "all"
MOST_NAMED = 3
"""Runs in the command that is shown at the end."""
CONSTANTS = ("best_fixed", "fixed")
"""Agents whose gamma is the same at every step; every table holds constants already."""


def report_comparison(
    comparison: Comparison,
    controllers: Sequence[Controller],
    test: TraceSet,
    cost: CostTable,
    output: Path,
    console: Console,
) -> None:
    """Measures the decision times, saves text, JSON, CSV and figures in the folder `output`, and prints the summary."""
    observations = sample_observations(*compile_pair(test, cost))
    times = [time_decisions(c, observations) for c in controllers]
    timelines = make_timelines(comparison, test, cost, controllers[0]) if controllers else None
    save_report(output, comparison, times=times, timelines=timelines)
    console.write(f"\n{render_summary(comparison)}\n")
    console.write(f"saved to:    {output}  ({TEXT}: all tables)")


def evaluate(settings: EvaluateSettings, console: Console) -> Comparison:
    """Compares controllers from run folders and agents made now; a SpecKVError leaves nothing written."""
    settings = _own_controllers_as_agents(settings)
    names = _names_of(settings.agents)
    train, test = load_splits(settings.data)
    require_comparable(train, test)
    cost = load_cost(settings.cost)
    cost.require((*train.compressions, *test.compressions))
    agents = _fitting_settings(names, train, cost, all_must_fit=EVERY_AGENT not in settings.agents)
    paths = _controller_paths(settings, cost.name, train)
    policies = [Policy.load(path) for path in paths]
    for policy in policies:
        warn_of_differences(policy, target=train.metadata.target_id, draft=train.metadata.draft_id, cost=cost)
    controllers = named_apart(policies, paths)
    if not settings.cost.known:
        controllers = [untold(c, cost.compressions, gamma_max=train.metadata.gamma_max) for c in controllers]
    _require_fitting(controllers, test, cost)
    if agents or any(not isinstance(c, ConstantGamma | ConstantPerCompression) for c in controllers):
        warn_of_waiting(cost.batch)
    for controller, path in zip(controllers, paths, strict=True):
        console.write(f"controller {controller.name}: {path}")
    if not paths:
        console.write("no trained run found: the table holds the baselines alone; train one with `speckv train`")
    made = _made_controllers(agents, settings, train, cost, console)
    for controller, path in zip(controllers, paths, strict=True):
        if controller.name in {c.name for c in made}:
            controller.name = path.resolve().name
    groups = find_seed_groups(paths, controllers, load_controller)
    for group in groups:
        console.write(f"{group.name}: {', '.join(group.members)}")
    controllers += made
    output = Path(settings.output) if settings.output else _default_output(settings, paths, cost.name)
    with console.progress(max(len(controllers), 1), unit="controller", label="replaying") as bar:
        comparison = compare(
            train=train,
            test=test,
            cost=cost,
            controllers=controllers,
            num_resamples=settings.num_resamples,
            seed=settings.seed,
            seed_groups=groups,
            on_controller=bar.update,
        )
    report_comparison(comparison, controllers, test, cost, output, console)
    if paths:
        console.write(f"see more:    speckv report {' '.join(map(str, paths[:MOST_NAMED]))}")
    console.result({**headline(comparison), "output": str(output)})
    return comparison


def _own_controllers_as_agents(settings: EvaluateSettings) -> EvaluateSettings:
    """Moves each "module:Class" from `controllers` to `agents`, which are made here."""
    listed = settings.controllers or ()
    own = tuple(path for path in listed if is_import_path(path))
    if not own:
        return settings
    others = tuple(path for path in listed if path not in own)
    return replace(settings, controllers=others, agents=(*settings.agents, *own))


def _controller_paths(settings: EvaluateSettings, cost: str, train: TraceSet) -> list[Path]:
    shipped = shipped_for(train.metadata.draft_id)
    if settings.controllers is not None:
        return [shipped if path == WORD else Path(path) for path in settings.controllers]
    latest = latest_run(settings.runs_dir, cost=cost, traces_sha256=train.sha256)
    return [latest if latest is not None else shipped]


def latest_run(runs_dir: Path | str, *, cost: str, traces_sha256: str) -> Path | None:
    """The newest run folder with a controller and this cost table and trace file, or None."""
    found: list[tuple[str, Path]] = []
    for folder in (path.parent for path in Path(runs_dir).glob(f"*/{RUN}")):
        try:
            facts = read_facts(folder)
        except CheckpointError:
            continue
        same = (read_fact(facts, "cost", "name"), read_fact(facts, "traces", "sha256")) == (cost, traces_sha256)
        if same and "started" in facts and find_policy(folder) is not None:
            found.append((str(facts["started"]), folder))
    return max(found)[1] if found else None


def _names_of(agents: Sequence[str]) -> Sequence[str]:
    if EVERY_AGENT in agents:
        return [name for name, agent in AGENTS.items() if not agent.in_environment and name not in CONSTANTS]
    for name in agents:
        if find_agent(name).in_environment:
            raise ConfigError(
                f"Expected agents that are made at once, got {name!r}, which learns in an environment. "
                f"Train it with `speckv train agent={name}` and name its run in controllers."
            )
    return agents


def warn_of_waiting(batch: int) -> None:
    """Warns that replay leaves out waiting times between rows with different gammas, if there is more than one row."""
    if batch > 1:
        logger.warning(
            "cost.batch=%d: times are exact where all rows draft alike. A row that drafts more than its neighbours "
            "makes them wait, which the replay does not charge.",
            batch,
        )


def _fitting_settings(names: Sequence[str], train: TraceSet, cost: CostTable, *, all_must_fit: bool) -> dict[str, Any]:
    found = {}
    for name in names:
        try:
            options = default_settings(name)
            require_batch(name, options, cost.batch)
            found[name] = within_depth(name, options, train.metadata.gamma_max)
        except ConfigError as error:
            if all_must_fit:
                raise
            logger.warning("Left out agent %s: %s", name, error)
    return found


def _require_fitting(controllers: Sequence[Controller], test: TraceSet, cost: CostTable) -> None:
    for controller in controllers:
        if isinstance(controller, StoppingController):
            require_single_request(controller.name, cost.batch)
    if test.metadata.gamma_max == GAMMA_MAX:
        return
    compiled, compiled_cost = compile_pair(test, cost)
    for controller in controllers:
        try:
            controller_sums(controller, compiled, compiled_cost)
        except ConfigError as error:
            raise ConfigError(f"{controller.name} does not fit these recordings: {error}") from error


def _made_controllers(
    agents: Mapping[str, Any], settings: EvaluateSettings, train: TraceSet, cost: CostTable, console: Console
) -> list[Controller]:
    data = TrainingData(train=train, cost=cost, seed=settings.seed, told=settings.cost.known)
    if settings.tuned and not settings.cost.known:
        raise ConfigError("Expected tuned=false with cost.known=false, got true: tuning uses the cost table.")
    made: list[Controller] = []
    if not agents:
        return made
    with console.progress(len(agents), unit="agent", label="making agents") as bar:
        for number, (name, options) in enumerate(agents.items()):
            bar.update(number, name)
            made.append(make_controller(name, options, data))
            if settings.tuned and name in grids():
                made.append(tune(name, data))
        bar.update(len(agents), "")
    return made


def _default_output(settings: EvaluateSettings, paths: Sequence[Path], cost: str) -> Path:
    runs = [path for path in paths if (path / RUN).is_file()]
    if len(paths) == 1 and runs:
        return runs[0] / EVALUATION
    return Path(settings.runs_dir) / f"evaluate-{cost}"
