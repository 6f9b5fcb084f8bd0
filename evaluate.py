# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on the test prompts: `python evaluate.py controllers=[runs/my-run]`."""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from agents.building import build_settings
from agents.runs.console import Console
from agents.runs.evaluating import evaluate
from agents.runs.settings import EvaluateSettings
from speckv.commands.app import CONFIGS, plain, prepare, run_explained

NAME = "evaluate"


def settings_from(config: DictConfig) -> EvaluateSettings:
    """Checks a composed config.

    Raises:
        ConfigError: naming the setting that is unknown, missing or wrong.
    """
    return build_settings(EvaluateSettings, plain(config))


def check(config: DictConfig, overrides: Sequence[str] = ()) -> None:  # noqa: ARG001
    """Checks a composed config."""
    settings_from(config)


@hydra.main(config_path=str(CONFIGS), config_name=NAME, version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs one evaluation; Hydra calls it once a combination of settings."""

    def action() -> None:
        settings = settings_from(config)
        if settings.paper is None:
            evaluate(settings, Console())
        else:
            # Imported here, because `benchmarks` is no part of the installed package.
            from benchmarks.paper.report import reproduce

            reproduce(settings.paper, settings, Console())

    run_explained(action)


def main() -> None:
    """Checks the command line, then lets Hydra run it."""

    def action() -> None:
        sys.argv[1:] = prepare(sys.argv[1:], NAME, check)

    run_explained(action)
    job()


if __name__ == "__main__":
    main()
