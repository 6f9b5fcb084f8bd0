# SPDX-License-Identifier: Apache-2.0
"""Finds the command and runs it with its composed config."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf

from speckv.commands.app import compose_checked, plain, run_explained
from speckv.errors import ConfigError, nearest

COMMANDS = {
    "train": "train a controller, and evaluate it on the test prompts",
    "evaluate": "compare controllers on the test prompts",
    "profile": "record what target and draft do on prompts, into a trace file",
    "merge": "join trace files of one recording",
    "calibrate": "measure passes on this machine, into a cost table",
    "decode": 'decode a prompt live: decode "PROMPT" (or - for standard input, or prompt_file=FILE) [key=value ...]',
    "report": "show runs on one HTML page: report RUN... [out=FILE]",
    "vocabulary": "write the texts of recorded tokens, for pages where no tokenizer is",
    "export": "make a trained policy ready for a decoding library (export --help)",
}


def program() -> None:
    """The console command `speckv`."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; a `SpecKVError` ends the process with status 2, Ctrl-C with 130."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_explained(lambda: _run(arguments[0], list(arguments[1:])))
    return 0


def _run(name: str, rest: list[str]) -> None:
    if name not in COMMANDS:
        raise ConfigError(f"Expected a command in {sorted(COMMANDS)}, got {name!r}." + nearest(name, list(COMMANDS)))
    module = importlib.import_module(f"speckv.commands.{name}")
    if hasattr(module, "main"):  # takes options, not overrides
        module.main(rest)
        return
    if hasattr(module, "check"):
        module.check(rest)
    overrides = module.overrides(rest) if hasattr(module, "overrides") else rest
    config = compose_checked(name, overrides)
    missing = [str(key) for key in config if OmegaConf.is_missing(config, key)]
    if missing:
        raise ConfigError(f"Expected {missing[0]}=..., got none. configs/{name}.yaml explains every setting.")
    plain(config, complete=False)  # refuses an interpolation without a value
    module.run(config)


def usage() -> str:
    """The help text."""
    lines = [f"  {name:10s} {what}" for name, what in COMMANDS.items()]
    return (
        "usage: speckv COMMAND [key=value ...]\n"
        + "\n".join(lines)
        + "\nconfigs/COMMAND.yaml lists and explains every setting.\n"
    )
