# SPDX-License-Identifier: Apache-2.0
"""What `train.py` and `evaluate.py` share: one clear error for a wrong setting, before anything is written."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speckv.commands.quoting import quote_texts
from speckv.errors import ConfigError, SpecKVError, device_errors_explained, nearest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPLAINED = 2
"""Exit status after an error that was explained."""

INTERRUPTED = 130
_ASKS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def prepare(
    arguments: Sequence[str], config_name: str, check: Callable[[DictConfig, Sequence[str]], None]
) -> list[str]:
    """Checks a command line before Hydra sees it.

    Args:
        arguments: Without the program's name.
        config_name: Of the primary config.
        check: Raises a SpecKVError if a composed config makes no sense; is told the overrides that made it as well.

    Returns:
        The arguments, names and paths quoted where Hydra's grammar needs it, with `--multirun` added if a setting
        lists several values.

    Raises:
        SpecKVError: naming the setting.
    """
    arguments = quote_texts(arguments, sweeps=True)
    if any(argument.split("=")[0] in _ASKS for argument in arguments):
        return arguments
    overrides = _parse([a for a in arguments if not a.startswith("-")])
    sweeps = any(override.is_sweep_override() for override in overrides)
    for choice in _every_value(overrides):
        check(compose_checked(config_name, choice), choice)
    multirun = sweeps and not {"-m", "--multirun"} & set(arguments)
    return [*arguments, *(["--multirun"] if multirun else [])]


def _parse(texts: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ConfigError(
            f"Expected overrides of the form key=value, got {_shown(texts)}: {_one_line(error)}"
        ) from error


def _every_value(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yields lists of plain overrides in which each swept value occurs at least once."""
    values = [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        for o in overrides
    ]
    for number in range(max((len(v) for v in values), default=1)):
        yield [str(v[min(number, len(v) - 1)]) for v in values]


def compose_checked(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes a config; what Hydra refuses, and why, comes out as one line with the nearest known word.

    Names, paths and notes are quoted where Hydra's grammar would refuse or change them; see `quote_texts`.

    Raises:
        ConfigError: naming the override.
    """
    overrides = quote_texts(overrides)
    groups, settings = _split(overrides)
    try:
        _check_groups(groups, _offered(config_name))
        config = _compose(config_name, groups)
        if settings:
            _check_keys(settings, config)
            config = _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"Cannot compose {_shown(overrides)}: {_one_line(error)}") from error
    return config


def _shown(overrides: Sequence[str]) -> list[str]:
    """Overrides for an error message; a long one, such as a prompt, is cut so that the reason stays readable."""
    return [text if len(text) <= 60 else f"{text[:60]}..." for text in overrides]


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(config_name=config_name, overrides=list(overrides))


@cache
def setting_names(config_name: str) -> tuple[str, ...]:
    """Dotted names of all settings of a config, and of the groups that it chooses from."""
    return (*_flatten(_compose(config_name, []), ""), *_offered(config_name))


@cache
def _offered(config_name: str) -> tuple[str, ...]:
    """Names at the top of a config, and its groups, those too that nothing is chosen from by default."""
    primary = OmegaConf.load(CONFIGS / f"{config_name}.yaml")
    assert isinstance(primary, DictConfig)
    entries = [entry for entry in primary.get("defaults", ()) if isinstance(entry, DictConfig)]
    # A group whose choice follows from others is none to choose from.
    groups = [str(key).split()[-1] for entry in entries for key in entry if "@" not in str(key)]
    return (*map(str, _compose(config_name, [])), *groups)


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    groups = [o for o in overrides if (CONFIGS / _key(o)).is_dir()]
    return groups, [o for o in overrides if o not in groups]


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~").split("@")[0]


def _check_groups(groups: Sequence[str], offered: Sequence[str]) -> None:
    for override in groups:
        key, _, value = override.partition("=")
        if _key(override) not in offered:
            raise ConfigError(f"Unknown setting {_key(override)!r}.{nearest(_key(override), list(offered))}")
        folder = CONFIGS / _key(override)
        known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
        if value and value not in ("null", *known):
            raise ConfigError(
                f"Expected {key.lstrip('+~')} to be one of {known}, got {value!r}.{nearest(value, known)}"
            )


def _check_keys(settings: Sequence[str], known: DictConfig) -> None:
    names = [*_flatten(known, ""), *(p.name for p in CONFIGS.iterdir() if p.is_dir())]
    for override in settings:
        key = _key(override)
        if key.startswith("hydra"):
            continue
        if override.startswith("+") or key not in names:
            raise ConfigError(f"Unknown setting {key!r}.{nearest(key, names)} `--cfg job` lists every setting.")


def _flatten(config: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(child, DictConfig):
            yield from _flatten(child, f"{prefix}{key}.")


def plain(config: DictConfig) -> dict[str, object]:
    """Turns a composed config into plain data, interpolations resolved.

    Raises:
        ConfigError: if a mandatory value is missing or an interpolation fails.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"Cannot resolve the config: {_one_line(error)}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def require_resolvable(config: DictConfig) -> None:
    """Passes if every interpolation in a config has a value; mandatory values may be missing.

    Raises:
        ConfigError: naming the setting.
    """
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"Cannot resolve the config: {_one_line(error)}") from error


def flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Turns nested settings into one level of dotted names.

    >>> flat({"agent": {"name": "ppo", "hidden": [64]}, "seed": 0})
    {'agent.name': 'ppo', 'agent.hidden': [64], 'seed': 0}
    """
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]


def run_explained(action: Callable[[], None]) -> None:
    """Runs an action; a deliberate error becomes one line and an exit status, Ctrl-C the usual one."""
    try:
        with device_errors_explained():
            action()
    except SpecKVError as error:
        sys.stderr.write(f"speckv: {_one_line(error)}\n")
        sys.exit(EXPLAINED)
    except KeyboardInterrupt:
        sys.stderr.write("speckv: interrupted\n")
        sys.exit(INTERRUPTED)
