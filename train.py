# SPDX-License-Identifier: Apache-2.0
"""Trains a controller and evaluates it once on the test prompts: `python train.py agent=ppo`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from agents.building import build_settings
from agents.registry import agent_settings, require_batch
from agents.runs.child_runs import shared_overrides
from agents.runs.console import Console, InterruptedTraining
from agents.runs.search import run_search
from agents.runs.settings import TrainSettings
from agents.runs.study import run_study, runs_of
from agents.runs.trials import first_values
from speckv.commands.app import CONFIGS, compose_checked, flat, plain, prepare, run_explained
from speckv.errors import CheckpointError, ConfigError, SpecKVError
from speckv.evaluation.run_facts import CONFIG

NAME = "train"


def settings_from(config: DictConfig) -> TrainSettings:
    """Checks a composed config.

    Raises:
        ConfigError: naming the setting that is unknown, missing or wrong.
    """
    settings = build_settings(TrainSettings, plain(config))
    require_batch(*agent_settings(settings.agent), settings.cost.batch, settings.env.decides)
    return settings


def check(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Checks a composed config, or the saved one that it asks to resume; of many runs, what each arm is told.

    Raises:
        SpecKVError: naming the setting, and the arm if it is told by one.
    """
    settings = settings_from(resumed(config, overrides=None))
    if settings.search is not None:
        compose_checked(NAME, [*shared_overrides(overrides), *first_values(settings.search.space), "search=null"])
    if not settings.is_study:
        return
    told: dict[str, DictConfig] = {}
    for run in runs_of(settings, overrides):
        try:
            if run.arm not in told:
                told[run.arm] = compose_checked(NAME, run.overrides)
                settings_from(told[run.arm])
            require_unchanged(run.folder, told[run.arm])
        except SpecKVError as error:
            raise ConfigError(f"Arm {run.arm!r} of the study: {error}") from error


def require_unchanged(folder: Path, config: DictConfig) -> None:
    """Passes if what is in a run's folder began with the same settings; a file of configs may have changed since.

    Args:
        folder: Of the run; need not be there.
        config: What the run is told today, but for its seed and its folder, which its place says.

    Raises:
        ConfigError: naming a setting that has changed.
    """
    if not (folder / CONFIG).is_file():
        return
    saved = OmegaConf.load(folder / CONFIG)
    assert isinstance(saved, DictConfig)
    before, now = flat(plain(saved)), flat(plain(config))
    for key in sorted({*before, *now} - {"seed", "output", "resume"}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"Expected {folder} to hold a run of today's settings, got {key}={before.get(key)} there and "
                f"{key}={now.get(key)} now. Restore it, or name another output."
            )


def resumed(config: DictConfig, overrides: list[str] | None) -> DictConfig:
    """Returns the config itself, or with `resume` the saved one of that run.

    Raises:
        CheckpointError: if there is no such run.
        ConfigError: if anything else was set on the command line: an exact continuation changes nothing.
    """
    folder = config.get("resume")
    if folder is None:
        return config
    path = Path(str(folder)) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"Expected resume= to name a run folder with a {CONFIG}, got {folder}.")
    changed = [line for line in overrides or [] if not line.startswith("resume=")]
    if changed:
        raise ConfigError(f"Expected nothing but resume=, which continues a run exactly as it began, got {changed}.")
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    saved.resume = str(folder)
    return saved


@hydra.main(config_path=str(CONFIGS), config_name=NAME, version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs one training; Hydra calls it once a combination of settings."""
    overrides = list(HydraConfig.get().overrides.task)

    def action() -> None:
        chosen = resumed(config, overrides)
        settings = settings_from(chosen)
        text = OmegaConf.to_yaml(chosen, resolve=True)
        if settings.search is not None:
            run_search(settings, Console(), overrides=overrides)
            return
        if settings.is_study:
            run_study(settings, Console(), overrides=overrides)
            return
        from agents.runs.training import train  # late, because PyTorch takes seconds to import

        train(settings, Console(), config=text, overrides=overrides)

    try:
        run_explained(action)
    except InterruptedTraining as interruption:
        sys.stderr.write(f"speckv: {interruption}; {interruption.advice}\n")
        sys.exit(interruption.exit_code)


def main() -> None:
    """Checks the command line, then lets Hydra run it."""

    def action() -> None:
        sys.argv[1:] = prepare(sys.argv[1:], NAME, check)

    run_explained(action)
    job()


if __name__ == "__main__":
    main()
