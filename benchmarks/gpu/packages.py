# SPDX-License-Identifier: Apache-2.0
"""What the stages need installed, by pyproject.toml and by what packages say of themselves.

Wheels are carried in one by one (`pip --no-deps`), so what they need in turn is looked for, too: omegaconf would be
missed only once calibration runs. Standard library, but for `packaging`, whose absence is a finding.
"""

import re
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu.settings import ROOT
from speckv.errors import ConfigError

TEST_TOOLS = ("hypothesis", "pytest")
"""Of the extra `test`, what the stage `tests` needs."""
BY_BUILD = ("cuda", "nvidia", "triton")
"""How names begin of what torch needs by its build; whether it works shows on the device."""


def required(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Requirements of the stages: the package's own, and those of its extras that they use."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["test"] if _name(line) in TEST_TOOLS]
    return [*project["dependencies"], *extras["models"], *tools]


def check_packages(lines: Sequence[str] | None = None) -> dict[str, str]:
    """Versions of the packages that the stages need.

    Args:
        lines: Requirements; `required()` by default.

    Raises:
        ConfigError: naming what is not installed, or of a version that will not do.
    """
    lines = required() if lines is None else lines
    found = {line: _version(_name(line)) for line in lines}
    missing = [line for line in lines if found[line] is None]
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        _refuse(["packaging", *missing], [], {})
    wrong = [
        line for line, has in found.items() if has and not Requirement(line).specifier.contains(has, prereleases=True)
    ]
    behind = absent_behind([_name(line) for line in lines if line not in missing])
    if missing or wrong or behind:
        _refuse(missing, [f"{line} (found {found[line]})" for line in wrong], behind, carry=[*missing, *wrong, *behind])
    return {_name(line): str(has) for line, has in found.items()}


def absent_behind(names: Iterable[str]) -> dict[str, str]:
    """What installed packages need in turn, whatever their extras, and is not there: its name -> who needs it."""
    from packaging.requirements import InvalidRequirement, Requirement  # late: see above

    absent: dict[str, str] = {}
    queue = list(names)
    seen: set[str] = set()
    while queue:
        who = queue.pop(0)
        for line in requires(who) or []:
            try:
                need = Requirement(line)
            except InvalidRequirement:  # written before there was a standard
                continue
            name = _plain(need.name)
            unasked = need.marker is not None and not need.marker.evaluate({"extra": ""})
            if name in seen or unasked or (_plain(who) == "torch" and name.startswith(BY_BUILD)):
                continue
            seen.add(name)
            if _version(name) is None:
                absent[name] = who
            else:
                queue.append(name)
    return absent


def _refuse(
    missing: Sequence[str], wrong: Sequence[str], behind: dict[str, str], carry: Sequence[str] | None = None
) -> NoReturn:
    listed = [*missing, *(f"{name} (needed by {who})" for name, who in behind.items())]
    told = [f"missing here: {', '.join(listed)}"] if listed else []
    told += [f"of another version: {', '.join(wrong)}"] if wrong else []
    wheels = " ".join(map(shlex.quote, missing if carry is None else carry))
    raise ConfigError(
        f"Expected all that pyproject.toml asks for to be installed; {'; '.join(told)}. Carry wheels in and install "
        f"them without a network: pip install --no-index --no-deps --find-links WHEELS {wheels}"
    )


def _name(line: str) -> str:
    """A requirement's name, read without `packaging`.

    >>> _name("hydra-core>=1.3,<1.4"), _name("speckv[models]")
    ('hydra-core', 'speckv')
    """
    found = re.match(r"\s*([\w.-]+)", line)
    assert found is not None
    return found[1]


def _plain(name: str) -> str:
    """A name as the index compares them.

    >>> _plain("Antlr4_python3.runtime")
    'antlr4-python3-runtime'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
