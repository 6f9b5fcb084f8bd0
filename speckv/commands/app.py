# SPDX-License-Identifier: Apache-2.0
"""Command lines over Hydra, with one-line errors before anything is written.

Free text is quoted where Hydra's grammar would refuse or change it, and every value of a sweep is checked before the
first run.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from speckv.commands.suggestions import LISTS, did_you_mean, require_assignments
from speckv.errors import CheckpointError, ConfigError, SpecKVError, device_errors_explained, nearest
from speckv.evaluation.run_facts import CONFIG
from speckv.importing import is_import_path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OWN = "own"
"""Choice of the group `agent` for a class of the user's own."""
EXPLAINED = 2
"""Exit status after an error that was explained."""
INTERRUPTED = 130
MULTIRUN = ("-m", "--multirun")

VERBATIM = ("notes",)
"""Settings whose value is taken as typed; quotes around all of it and `null` keep their meaning."""
TEXTS = (
    *("name", "out", "output", "runs_dir", "from", "resume", "init_from", "tokenizer", "vocabulary"),
    *("model.name", "model.target", "model.draft", "model.folder", "cost.table", "data.traces"),
    *("learn.cost", "learn.traces"),
)
"""Settings whose value is one name or path; what is not a string in Hydra's grammar is taken as typed."""
MIXED = ("controller", "prompts", "check_prompts", "inputs", "controllers", "live.prompts", "traces", "runs")
"""Settings whose value is a path, a number or a list of paths; what Hydra's grammar refuses is taken as typed."""

_PRINTS = ("--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
"""Options with which Hydra prints something and runs nothing."""
_UNKNOWN = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_MISSING = "???"
_LONGEST_LINE = 700


def prepare(
    arguments: Sequence[str], config_name: str, check: Callable[[DictConfig, Sequence[str]], None]
) -> list[str]:
    """Checks a command line; returns it with free text quoted, and with `--multirun` if a setting lists several values.

    `check` gets a composed config and its overrides, and raises a SpecKVError if they are wrong.
    """
    arguments = quote_texts(own_names(arguments), sweeps=True)
    if any(argument.split("=")[0] in _PRINTS for argument in arguments):
        return arguments
    texts = [a for a in arguments if not a.startswith("-")]
    require_assignments(config_name, texts, choices_of(config_name))
    overrides = parse_overrides(texts)
    for choice in _every_value(overrides):
        check(compose_checked(config_name, choice), choice)
    sweeps = any(override.is_sweep_override() for override in overrides)
    multirun = sweeps and not set(MULTIRUN) & set(arguments)
    return [*arguments, *(["--multirun"] if multirun else [])]


def first_of_sweeps(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line, each with the first of its values; options are dropped."""
    texts = [argument for argument in quote_texts(own_names(arguments), sweeps=True) if not argument.startswith("-")]
    return next(_every_value(parse_overrides(texts)))


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Parses overrides by Hydra's grammar; a ConfigError shows what does not follow it."""
    try:
        return OverridesParser.create().parse_overrides(list(texts))
    except HydraException as error:
        raise ConfigError(
            f"Expected overrides of the form key=value, got {_shown(texts)}: {one_line(error)}"
        ) from error


def _every_value(overrides: Sequence[Override]) -> Iterator[list[str]]:
    values = [
        [f"{o.get_key_element()}={v}" for v in o.sweep_string_iterator()] if o.is_sweep_override() else [o.input_line]
        for o in overrides
    ]
    for number in range(max((len(v) for v in values), default=1)):
        yield [str(v[min(number, len(v) - 1)]) for v in values]


def compose_checked(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes a config; free text is quoted as in `quote_texts`.

    Raises:
        ConfigError: one line that names the override, with the nearest known setting or choice.
    """
    overrides = quote_texts(own_names(overrides))
    require_assignments(config_name, overrides, choices_of(config_name))
    allowed = ("hydra", "agent.") if f"agent={OWN}" in overrides else ("hydra",)
    added = [key for o in overrides if o.startswith("+") and not (key := _name(o).lstrip("+")).startswith(allowed)]
    try:
        config = _compose(config_name, [o for o in overrides if _name(o).lstrip("+") not in added])
    except MissingConfigException as error:
        group, _, value = str(error.missing_cfg_file).partition("/")
        known = names_in(group)
        raise ConfigError(f"Expected {group} to be one of {known}, got {value!r}.{nearest(value, known)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is None:
            raise ConfigError(f"Cannot compose {_shown(overrides)}: {one_line(error)}") from error
        added = [unknown[1]]
    if added:
        names = list(setting_names(config_name, tuple(overrides)))
        hint = f"{did_you_mean(added[0], names)} `speckv {config_name} --help` explains every setting."
        raise ConfigError(f"Unknown setting {added[0]!r}.{hint}")
    return config


def own_names(overrides: Sequence[str]) -> list[str]:
    """Rewrites `agent=module:Class` and `reward=module:function`, which are no choices of these groups.

    >>> own_names(["agent=my_module:MyRule", "agent.gamma=3", "reward=my_module:frugal", "seed=1"])
    ['agent=own', 'agent.name=my_module:MyRule', '+agent.gamma=3', 'reward.name=my_module:frugal', 'seed=1']
    """
    own_agent, rewritten = False, list[str]()
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("agent", "reward") and ":" in value:
            if not is_import_path(value):
                raise ConfigError(f'Expected {key} to be one "module:name", such as my_module:MyRule, got {value!r}.')
            own_agent |= key == "agent"
            rewritten += [f"agent={OWN}"] if key == "agent" else []
            override = f"{key}.name={value}"
        elif own_agent and key.startswith("agent.") and key != "agent.name":
            override = f"+{override}"
        rewritten.append(override)
    return rewritten


def _shown(overrides: Sequence[str]) -> list[str]:
    return [text if len(text) <= 60 else f"{text[:60]}..." for text in overrides]


def _compose(config_name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(config_name=config_name, overrides=list(overrides), return_hydra_config=with_hydra)


@cache
def setting_names(config_name: str, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Dotted names of a config's settings and of its groups; overrides may choose from the groups."""
    groups = list(chosen_groups(config_name))
    return (*_flatten(_compose(config_name, [o for o in overrides if _name(o) in groups]), ""), *groups)


def chosen_groups(config_name: str, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """Groups of a config, each with the name of its chosen file, or None."""
    choices = _compose(config_name, overrides, with_hydra=True).hydra.runtime.choices
    choices = dict(reversed(choices.items()))  # in the order of the defaults list
    named = {str(group): None if name in (None, "null") else str(name) for group, name in choices.items()}
    return {
        group: name for group, name in named.items() if "/" not in group and "@" not in group
    }  # @: follow from others


def names_in(group: str) -> list[str]:
    """Names of a group's files."""
    return sorted(str(path.relative_to(CONFIGS / group).with_suffix("")) for path in (CONFIGS / group).rglob("*.yaml"))


@cache
def choices_of(config_name: str) -> dict[str, list[str]]:
    """Groups of a config, each with its names."""
    return {group: names_in(group) for group in chosen_groups(config_name) if group != "hydra"}


def with_lists(config: DictConfig) -> DictConfig:
    """Turns a single value of a setting that holds a list into a list of one."""
    for key in LISTS:
        if isinstance(config.get(key), str | int):
            config[key] = [config[key]]
    return config


def _name(override: str) -> str:
    return override.partition("=")[0]


def _flatten(config: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, config):
        yield f"{prefix}{key}"
        child = None if OmegaConf.is_missing(config, key) else config[key]
        if isinstance(child, DictConfig):
            yield from _flatten(child, f"{prefix}{key}.")


def plain(config: DictConfig, *, complete: bool = True) -> dict[str, object]:
    """Turns a composed config into plain data, interpolations resolved.

    Raises:
        ConfigError: if an interpolation has no value or, with `complete`, a mandatory value is missing.
    """
    try:
        content = OmegaConf.to_container(config, resolve=True, throw_on_missing=complete)
    except OmegaConfBaseException as error:
        raise ConfigError(f"Cannot resolve the config: {one_line(error)}") from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Turns nested settings into one level of dotted names.

    >>> flat({"agent": {"name": "ppo", "hidden": [64]}, "seed": 0})
    {'agent.name': 'ppo', 'agent.hidden': [64], 'seed': 0}
    """
    found: dict[str, object] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def one_line(error: BaseException) -> str:
    """The text of an error without line ends, cut where it is very long."""
    return " ".join(str(error).split())[:_LONGEST_LINE]


def explain(error: SpecKVError) -> None:
    """Writes one line about an error."""
    sys.stderr.write(f"speckv: {one_line(error)}\n")


def run_explained(action: Callable[[], None]) -> None:
    """Runs an action; a `SpecKVError` becomes one line and exit status 2, Ctrl-C exit status 130."""
    try:
        with device_errors_explained():
            action()
    except SpecKVError as error:
        explain(error)
        sys.exit(EXPLAINED)
    except KeyboardInterrupt:
        sys.stderr.write("speckv: interrupted\n")
        sys.exit(INTERRUPTED)


def resumed(config: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """The config itself, or with `resume` the saved one of that run; other overrides are then refused."""
    folder = config.get("resume")
    if folder is None:
        return config
    saved = _saved_config(Path(str(folder)))
    if saved is None:
        raise CheckpointError(f"Expected resume= to name a run folder with a {CONFIG}, got {folder}.")
    if changed := [line for line in overrides if not line.startswith("resume=")]:
        raise ConfigError(f"Expected nothing but resume=, which continues a run exactly as it began, got {changed}.")
    saved.resume = str(folder)
    return saved


def require_unchanged(folder: Path, config: DictConfig) -> None:
    """Raises a ConfigError if a folder holds a run that began with another config, seed and folder aside."""
    saved = _saved_config(folder)
    if saved is None:
        return
    before, now = flat(plain(saved)), flat(plain(config))
    for key in sorted({*before, *now} - {"seed", "output", "resume", "dry_run"}):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"Expected {folder} to hold a run of today's settings, got {key}={before.get(key)} there and "
                f"{key}={now.get(key)} now. Restore it, or name another output."
            )


def _saved_config(folder: Path) -> DictConfig | None:
    if not (folder / CONFIG).is_file():
        return None
    saved = OmegaConf.load(folder / CONFIG)
    assert isinstance(saved, DictConfig)
    return saved


def quoted(text: str) -> str:
    r"""Writes a text as the value of an override; the composed config holds exactly the text.

    Hydra drops backslashes in front of a quote, OmegaConf those in front of `${`; both keep all others. OmegaConf
    cannot quote `???`, its mark of a missing value.

    >>> print(quoted("It's ${x}"))
    'It\'s \${x}'
    """
    if text == _MISSING:
        return "${oc.decode:\"'???'\"}"
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{text}'"


def require_utf8(arguments: Sequence[str]) -> None:
    """Raises a ConfigError for an argument that is not UTF-8."""
    for argument in arguments:
        # Python represents bytes that are not UTF-8 as lone surrogates.
        if re.search("[\ud800-\udfff]", argument):
            shown = argument if len(argument) < 100 else f"{argument[:100]}..."
            raise ConfigError(f"Expected arguments in UTF-8, got {shown!a}. Convert it, or set a UTF-8 locale.")


def quote_texts(overrides: Sequence[str], *, sweeps: bool = False) -> list[str]:
    """Quotes values of text settings that Hydra's grammar would change or refuse; with `sweeps`, `a,b` is a list."""
    require_utf8(overrides)
    return [_quote_text(override, sweeps) for override in overrides]


def _quote_text(override: str, sweeps: bool) -> str:
    key, _, value = override.partition("=")
    name = key.lstrip("+")
    if not value or name not in (*VERBATIM, *TEXTS, *MIXED):
        return override
    if name not in VERBATIM and _exists(value):  # names of run folders may hold commas
        return f"{key}={quoted(value)}"
    parsed = _parsed(override)
    if parsed is None:
        return f"{key}={_quoted_list(value) if name in MIXED else quoted(value)}"
    if (
        name in MIXED
        or isinstance(parsed._value, QuotedString)
        or value == "null"
        or (sweeps and parsed.is_sweep_override())
    ):
        return override
    if name in VERBATIM or parsed.is_sweep_override() or not isinstance(parsed.value(), str):
        return f"{key}={quoted(value)}"
    return override


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or a null character
        return False


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _quoted_list(value: str) -> str:
    if not value.startswith(("[", "{")):
        return quoted(value)
    inside = value[1:-1]
    if not value.endswith("]") or re.search(r"[\[\]'\"]", inside):
        return value
    return "[" + ",".join(quoted(element) for element in _elements(inside)) + "]"


def _elements(inside: str) -> Iterator[str]:
    """Splits at commas, except inside existing paths: run folders of a sweep have commas in their names."""
    parts = inside.split(",")
    while parts:
        joined = (",".join(parts[:number]).strip() for number in range(len(parts), 0, -1))
        element = next((text for text in joined if _exists(text)), parts[0].strip())
        yield element
        parts = parts[element.count(",") + 1 :]
