# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on the test prompts: `python evaluate.py controllers=[runs/my-run]`."""

from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from agents.building import build_settings
from agents.runs.console import Console
from agents.runs.evaluating import evaluate
from agents.runs.settings import EvaluateSettings
from speckv.commands.app import CONFIGS, plain, run_explained, run_program

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
        # Imported here, because `benchmarks` is no part of the installed package.
        from benchmarks.paper.report import reproduce

        reproduce(settings.paper, settings, Console())


@hydra.main(config_path=str(CONFIGS), config_name=NAME, version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs once for each combination of settings."""
    run_explained(lambda: run(config))


if __name__ == "__main__":
    run_program(NAME, check, job)
