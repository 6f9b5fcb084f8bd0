# SPDX-License-Identifier: Apache-2.0
"""A study as a config file describes it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from speckv.errors import ConfigError

_SAFE = re.compile(r"[^a-z0-9.]+")
_HAS_LETTER = re.compile(r"[a-z0-9]")
"""Or else the folder of an arm would be the study's own, or the one above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """Arms that differ in what their names say, each trained with every seed.

    Attributes:
        name: Of the study's folder and of its results.
        question: What it asks, in one sentence; printed above its table.
        arms: Name -> what `train.py` is told beside what it is told for all; others are held to the first.
        seeds: Of each arm, unless the command line has its own.
    """

    name: str
    question: str
    arms: Mapping[str, object]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Checks that there are arms, whose overrides are lists of words, and that folders can tell them apart."""
        if not self.arms:
            raise ConfigError(f"Expected study.arms to name one arm or more, got none in {self.name!r}.")
        for arm, overrides in self.arms.items():
            if not isinstance(overrides, list | tuple) or not all(isinstance(o, str) for o in overrides):
                raise ConfigError(
                    f"Expected study.arms.{arm} to list overrides such as agent.gamma=4, got {overrides!r}."
                )
        folders = [folder_of(arm) for arm in self.arms]
        if len(set(folders)) < len(folders) or not all(map(_HAS_LETTER.search, folders)):
            raise ConfigError(f"Expected names of arms that differ in letters or digits, got {list(self.arms)}.")

    def overrides(self, arm: str) -> tuple[str, ...]:
        """What one arm is told."""
        told = self.arms[arm]
        assert isinstance(told, list | tuple)
        return tuple(map(str, told))


def folder_of(arm: str) -> str:
    """Name of an arm's folder.

    >>> folder_of("without past signals")
    'without-past-signals'
    """
    return _SAFE.sub("-", arm.lower()).strip("-")
