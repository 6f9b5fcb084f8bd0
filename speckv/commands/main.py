# SPDX-License-Identifier: Apache-2.0
"""Finds the command and runs it with its composed config."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf

from speckv import __version__
from speckv.commands.app import CONFIGS, compose_checked, plain, run_explained, with_lists
from speckv.commands.help import command_help, lay_out, read_config_file
from speckv.errors import ConfigError, nearest
from speckv.importing import allow_stored

COMMANDS = {
    "train": "[key=value ...]",
    "evaluate": "[key=value ...]",
    "profile": "prompts=FILE out=FILE [key=value ...]",
    "merge": "out=FILE inputs=[FILE,...]",
    "calibrate": "name=NAME [key=value ...]",
    "decode": '"PROMPT" [key=value ...]',
    "report": "RUN ... [key=value ...]",
    "vocabulary": "tokenizer=NAME traces=FILE out=FILE",
    "export": "RUN [--to TARGET] [options]",
}
"""Command -> its arguments."""
HELP = ("-h", "--help")
LITERAL = "--"
"""Before a prompt that looks like an option."""


def program() -> None:
    """The console command `speckv`."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; a `SpecKVError` ends the process with status 2, Ctrl-C with 130."""
    if not arguments or arguments[0] in HELP:
        sys.stdout.write(usage())
    elif arguments[0] == "--version":
        sys.stdout.write(f"speckv {__version__}\n")
    else:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        allow_stored()
        run_explained(lambda: _run(arguments[0], list(arguments[1:])))
    return 0


def _run(name: str, rest: list[str]) -> None:
    if name not in COMMANDS:
        hint = f" Did you mean `speckv train {name}`?" if "=" in name else nearest(name, list(COMMANDS))
        raise ConfigError(f"Expected a command of {list(COMMANDS)}, got {name[:100]!r}.{hint}")
    options = rest[: rest.index(LITERAL)] if LITERAL in rest else rest
    if set(options) & set(HELP):
        sys.stdout.write(help_of(name, [option for option in options if option not in HELP]))
        return
    if name == "decode" and LITERAL in rest:
        rest.remove(LITERAL)
    module = importlib.import_module(f"speckv.commands.{name}")
    if hasattr(module, "main"):  # takes options, not overrides
        module.main(rest)
        return
    if hasattr(module, "check"):
        module.check(rest)
    overrides = module.overrides(rest) if hasattr(module, "overrides") else rest
    config = with_lists(compose_checked(name, overrides))
    missing = [str(key) for key in config if OmegaConf.is_missing(config, key)]
    if missing:
        raise ConfigError(f"Expected {missing[0]}=..., got none. `speckv {name} --help` explains every setting.")
    plain(config, complete=False)  # refuses an interpolation without a value
    module.run(config)


def help_of(name: str, arguments: Sequence[str] = ()) -> str:
    """The help text of a command; arguments that are settings choose what is shown."""
    if name == "export":
        from speckv.commands import export  # late, because other commands need no policies

        return export.help_text(f"speckv export {COMMANDS[name]}")
    overrides = [argument for argument in arguments if "=" in argument and " " not in argument.partition("=")[0]]
    return command_help(name, COMMANDS[name], overrides)


def usage() -> str:
    """The help text of the program."""
    commands = lay_out([(name, _summary(name)) for name in COMMANDS])
    options = lay_out(
        [("-h, --help", "prints this text, or behind a command its settings"), ("--version", "prints the version")]
    )
    return "\n".join(
        ["usage: speckv COMMAND [key=value ...]", "", "Commands:", *commands, "", "Options:", *options, ""]
    )


def _summary(name: str) -> str:
    if name == "export":
        from speckv.commands.export import DESCRIPTION  # late: it needs the policies

        return DESCRIPTION
    return read_config_file(CONFIGS / f"{name}.yaml").description.partition(". ")[0].rstrip(".") + "."
