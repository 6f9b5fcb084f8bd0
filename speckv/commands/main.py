# SPDX-License-Identifier: Apache-2.0
"""Finds the command, composes its config, and turns deliberate errors into one line."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from speckv.errors import ConfigError, SpecKVError, nearest

COMMANDS = {
    "profile": "record what target and draft do on prompts, into a trace file",
    "merge": "join trace files of one recording",
    "calibrate": "measure passes on this machine, into a cost table",
    "decode": "decode a prompt live with a controller",
}
CONFIGS = Path(__file__).parents[2] / "configs"
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Runs one command.

    Args:
        arguments: The command, then its overrides, as Hydra writes them.

    Returns:
        The exit status: 0, or 2 after an error that was explained, or 130 after Ctrl-C.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        name = arguments[0]
        if name not in COMMANDS:
            raise ConfigError(f"Expected a command in {sorted(COMMANDS)}, got {name!r}." + nearest(name, list(COMMANDS)))
        module = importlib.import_module(f"speckv.commands.{name}")
        module.run(compose_config(name, module.overrides(list(arguments[1:]))))
    except (SpecKVError, HydraException, OmegaConfBaseException) as error:
        sys.stderr.write(f"speckv: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("speckv: interrupted; what was finished is kept\n")
        return INTERRUPTED
    return 0


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes `configs/<name>.yaml` with overrides.

    Raises:
        ConfigError: for an override that fits nothing.
    """
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        try:
            return compose(config_name=name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{name}: {' '.join(str(error).split())[:300]}") from error


def usage() -> str:
    """The help text."""
    lines = [f"  {name:10s} {what}" for name, what in COMMANDS.items()]
    return "usage: python -m speckv COMMAND [key=value ...]\n" + "\n".join(lines) + "\n"
