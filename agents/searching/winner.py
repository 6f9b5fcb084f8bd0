# SPDX-License-Identifier: Apache-2.0
"""What won a search as a config file."""

import shlex
from collections.abc import Sequence

from agents.studies.running import PROGRAM

CONFIGS = PROGRAM.parent / "configs"


def winner_config(search: str, winner: str, overrides: Sequence[str], shared: Sequence[str]) -> str:
    """What the winner tried as a config that `experiment=` takes once it lies in `configs/experiment`.

    Args:
        search: Name of the search.
        winner: Name of the winner.
        overrides: That it tried.
        shared: That all trials were told.

    >>> print(winner_config("toy", "trial 3", ["agent.hidden=[64,64]", "reward=time", "agent.a.b=1"], ["tune=toy"]))
    # @package _global_
    # Found by toy: trial 3. The whole of it:
    # python train.py tune=toy 'agent.hidden=[64,64]' reward=time agent.a.b=1 search=null
    defaults:
      - override /reward: time
    agent:
      a:
        b: 1
      hidden: [64,64]
    <BLANKLINE>
    """
    command = shlex.join(["python", "train.py", *shared, *overrides, "search=null"])
    lines = ["# @package _global_", f"# Found by {search}: {winner}. The whole of it:", f"# {command}"]
    told = [(key, value) for key, _, value in (override.partition("=") for override in overrides)]
    groups = [f"  - override /{key}: {value}" for key, value in told if _is_group(key)]
    lines += ["defaults:", *groups] if groups else []
    above: list[str] = []
    for key, value in sorted(pair for pair in told if not _is_group(pair[0])):
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
                above = parents[: depth + 1]
        above = parents
        lines.append(f"{'  ' * len(parents)}{name}: {value}")
    return "\n".join(lines) + "\n"


def _is_group(key: str) -> bool:
    return (CONFIGS / key).is_dir()
