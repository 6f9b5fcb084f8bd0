# SPDX-License-Identifier: Apache-2.0
"""Recorded facts of run folders, and groups of runs that differ by their seed alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from speckv.errors import CheckpointError
from speckv.evaluation.entrants import MIN_SEEDS, SeedGroup
from speckv.runtime.shipped import WORD, shipped_for, shipped_policy
from speckv.traces import TraceSet, find_traces
from speckv.types import Controller

RUN, CONFIG = "run.json", "config.yaml"
"""Files of a run folder: facts of the run besides its settings, and the settings."""


def controller_folder(word: str, traces: str | None = None) -> Path:
    """Finds a run folder, a policy's folder, a shipped policy by name, or with "shipped" that for recordings.

    Raises:
        CheckpointError: if there is no such folder.
        TraceError: if there are no such recordings.
    """
    if word != WORD:
        folder = Path(word)
        if not folder.is_dir() and shipped_policy(word).is_dir():
            folder = shipped_policy(word)
    else:
        folder = shipped_for(None if traces is None else TraceSet.load(find_traces(traces)).metadata.draft_id)
    if not folder.is_dir():
        raise CheckpointError(f"Expected a run folder or a policy's folder at {folder}, found none.")
    return folder


def read_facts(folder: Path) -> Mapping[str, object]:
    """Reads the recorded facts of a run; empty for a policy's folder."""
    path = folder / RUN
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: expected a readable {RUN}, got: {error}. The folder is damaged.") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{folder}: expected an object in {RUN}, got {facts!r}. The folder is damaged.")
    return facts


def read_fact(facts: Mapping[str, object], what: str, key: str) -> str:
    """A fact about a file that a run was trained on, or "" if it was not recorded.

    >>> read_fact({"cost": {"name": "cpu-2core"}}, "cost", "name"), read_fact({}, "traces", "sha256")
    ('cpu-2core', '')
    """
    about = facts.get(what)
    value = about.get(key) if isinstance(about, dict) else None
    return str(value) if value else ""


_FREE = ("seed", "output", "runs_dir")
"""Settings that may differ: the seed, and output folders, which do not affect the run."""
_DECISIVE = ("agent", "cost", "traces", "live")
"""Facts that must agree as well: a config names files, the facts hold their hashes."""


def find_seed_groups(
    paths: Sequence[Path], controllers: Sequence[Controller], load: Callable[[Path], Controller]
) -> list[SeedGroup]:
    """Groups runs that differ by their seed alone, by first appearance; only run folders are grouped.

    `controllers` are those of the paths, under their names in tables; `load` returns one under its own name. A second
    run of the same seed is in no group.
    """
    runs: dict[str, dict[int, tuple[Path, str]]] = {}
    for path, controller in zip(paths, controllers, strict=True):
        known = _terms_and_seed(path)
        if known is not None:
            terms, seed = known
            runs.setdefault(terms, {}).setdefault(seed, (path, controller.name))
    found = [list(by_seed.values()) for by_seed in runs.values() if len(by_seed) >= MIN_SEEDS]
    # Controllers of equal name are shown under the names of their folders; a group gets the agent's own name.
    names = [load(members[0][0]).name for members in found]
    return [
        SeedGroup.of(name if names.count(name) == 1 else f"{name} as {members[0][1]}", [shown for _, shown in members])
        for name, members in zip(names, found, strict=True)
    ]


def _terms_and_seed(folder: Path) -> tuple[str, int] | None:
    try:
        facts = read_facts(folder)
        config = (folder / CONFIG).read_text(encoding="utf-8")
    except (CheckpointError, OSError, ValueError):
        return None
    settings = top_level(config)
    seed = facts.get("seed")
    if "seed" not in settings or not isinstance(seed, int):
        return None
    kept = {key: block for key, block in settings.items() if key not in _FREE}
    return repr((sorted(kept.items()), [facts.get(key) for key in _DECISIVE])), seed


def top_level(config: str) -> dict[str, str]:
    r"""Splits a config, YAML in block style, into its top-level settings, each with its value as written.

    >>> top_level("agent:\n  name: ppo\nseed: 0\n")
    {'agent': '\n  name: ppo\n', 'seed': ' 0\n'}
    """
    settings: dict[str, str] = {}
    key = ""
    for line in config.splitlines(keepends=True):
        # List items may start at the margin too; they belong to the setting above.
        if line[:1] not in ("", " ", "-", "#", "\n"):
            key, _, line = line.partition(":")
        settings[key] = settings.get(key, "") + line
    return settings
