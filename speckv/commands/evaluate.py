# SPDX-License-Identifier: Apache-2.0
"""`speckv evaluate controllers=[runs/my-run]`: compares controllers on the test prompts."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from speckv.agents.building import build_settings
from speckv.agents.runs.console import Console
from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import EvaluateSettings
from speckv.commands.app import CONFIGS, plain
from speckv.commands.sweep import run_job, run_program
from speckv.errors import ConfigError

NAME = "evaluate"


def settings_from(config: DictConfig) -> EvaluateSettings:
    """Checks a composed config; a ConfigError names the setting that is unknown, missing or wrong."""
    return build_settings(EvaluateSettings, plain(config))


def check(config: DictConfig, overrides: Sequence[str] = ()) -> None:  # noqa: ARG001
    """Checks a composed config."""
    settings_from(config)


def run(config: DictConfig) -> None:
    """Compares, or reproduces the SpecKV paper's figures."""
    settings = settings_from(config)
    if settings.paper is None:
        evaluate(settings, Console())
    else:
        try:
            from benchmarks.paper.report import reproduce
        except ImportError as error:
            needed = "Expected a checkout for the paper's study, found an installed package."
            raise ConfigError(f"{needed} Run `python evaluate.py experiment=speckv_paper` in a checkout.") from error

        reproduce(settings.paper, settings, Console())


@hydra.main(config_path=str(CONFIGS), config_name=NAME, version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs once for each combination of settings."""
    run_job(config, lambda: run(config))


def main(arguments: Sequence[str]) -> None:
    """Checks the command line, then lets Hydra run the job."""
    run_program(NAME, arguments, check, job)
