# SPDX-License-Identifier: Apache-2.0
"""`speckv train agent=ppo`: trains a controller and evaluates it once on the test prompts."""

import sys
from collections.abc import Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from speckv.agents.building import build_settings
from speckv.agents.registry import agent_settings, require_batch
from speckv.agents.runs.child_runs import shared_overrides
from speckv.agents.runs.console import Console, InterruptedTraining
from speckv.agents.runs.planning import NOTHING_WRITTEN
from speckv.agents.runs.search import describe_search, run_search
from speckv.agents.runs.settings import TrainSettings
from speckv.agents.runs.study import describe_study, run_study, runs_of
from speckv.agents.runs.trials import first_values
from speckv.commands.app import CONFIGS, compose_checked, plain, require_unchanged, resumed
from speckv.commands.sweep import run_job, run_program
from speckv.errors import ConfigError, SpecKVError

NAME = "train"
DRY_RUN = "dry_run"


def of_run(config: DictConfig) -> dict[str, object]:
    """A composed config as plain data, without the settings of the command alone."""
    return {key: value for key, value in plain(config).items() if key != DRY_RUN}


def settings_from(config: DictConfig) -> TrainSettings:
    """Checks a composed config; a ConfigError names the setting that is unknown, missing or wrong."""
    settings = build_settings(TrainSettings, of_run(config))
    require_batch(*agent_settings(settings.agent), settings.cost.batch, settings.env.decides)
    return settings


def check(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Checks a composed config, or the saved one that it resumes, and every arm of a study."""
    settings = settings_from(resumed(config))
    if settings.search is not None:
        compose_checked(NAME, [*shared_overrides(overrides), *first_values(settings.search.space), "search=null"])
    arms: dict[str, DictConfig] = {}
    for child in runs_of(settings, overrides) if settings.is_study else ():
        try:
            if child.arm not in arms:  # its runs differ by their seed alone
                arms[child.arm] = compose_checked(NAME, child.overrides)
                settings_from(arms[child.arm])
            require_unchanged(child.folder, arms[child.arm])
        except SpecKVError as error:
            raise ConfigError(f"Arm {child.arm!r} of the study: {error}") from error


def run(config: DictConfig, overrides: Sequence[str]) -> None:
    """Trains, runs a study, or searches for hyper-parameters."""
    config = resumed(config, overrides)
    OmegaConf.set_struct(config, False)
    dry = config.pop(DRY_RUN, False)  # a run's saved config is that of the run alone
    settings = settings_from(config)
    if dry:
        Console().write(f"{describe(settings, overrides)}\n\n{NOTHING_WRITTEN}")
    elif settings.search is not None:
        run_search(settings, Console(), overrides=overrides)
    elif settings.is_study:
        run_study(settings, Console(), overrides=overrides)
    else:
        from speckv.agents.runs.training import train  # late, because PyTorch takes seconds to import

        train(settings, Console(), config=OmegaConf.to_yaml(config, resolve=True), overrides=overrides)


def describe(settings: TrainSettings, overrides: Sequence[str]) -> str:
    """What `run` would do."""
    if settings.search is not None:
        return describe_search(settings)
    if settings.is_study:
        return describe_study(settings, overrides)
    folder = settings.resume or settings.output or f"a new folder in {settings.runs_dir}"
    steps = settings.agent.get("total_steps")
    length = f", {steps:,} environment steps" if isinstance(steps, int) else ""
    return (
        f"1 run: {settings.agent['name']}, cost table {settings.cost.table}, seed {settings.seed}{length}; in {folder}"
    )


@hydra.main(config_path=str(CONFIGS), config_name=NAME, version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs once for each combination of settings."""
    try:
        run_job(config, lambda: run(config, list(HydraConfig.get().overrides.task)))
    except InterruptedTraining as interruption:
        sys.stderr.write(f"speckv: {interruption}; {interruption.advice}\n")
        sys.exit(interruption.exit_code)


def main(arguments: Sequence[str]) -> None:
    """Checks the command line, then lets Hydra run the job."""
    run_program(NAME, arguments, check, job)
