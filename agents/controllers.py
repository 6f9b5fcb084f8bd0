# SPDX-License-Identifier: Apache-2.0
"""Trained controllers: the latest run's, the shipped one, several with names of their own."""

from pathlib import Path

from speckv.errors import CheckpointError
from speckv.evaluation.run_facts import RUN, read_fact, read_facts
from speckv.runtime.policy import load_controller, name_apart
from speckv.runtime.storage import find_policy
from speckv.types import Controller


def latest_run(runs_dir: Path | str, *, cost: str, traces_sha256: str) -> Path | None:
    """The newest run on a clock and a trace file that has a controller to show, or None."""
    found: list[tuple[str, Path]] = []
    for folder in (path.parent for path in Path(runs_dir).glob(f"*/{RUN}")):
        try:
            facts = read_facts(folder)
        except CheckpointError:
            continue
        same = (read_fact(facts, "cost", "name"), read_fact(facts, "traces", "sha256")) == (cost, traces_sha256)
        if same and "started" in facts and find_policy(folder) is not None:
            found.append((str(facts["started"]), folder))
    return max(found)[1] if found else None


def load_named(paths: list[Path]) -> list[Controller]:
    """Loads controllers and gives each a name of its own: its agent's, or its folder's where two would agree."""
    loaded = [load_controller(path) for path in paths]
    name_apart(loaded, paths)
    return loaded
