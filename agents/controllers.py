# SPDX-License-Identifier: Apache-2.0
"""Trained controllers on disk: saving, finding, loading."""

import json
from collections.abc import Mapping
from pathlib import Path

from agents.best_fixed import BestFixedGamma
from agents.fixed import FixedGamma
from speckv.errors import CheckpointError
from speckv.runtime import PolicyController
from speckv.runtime.files import canonical_json, write_atomically
from speckv.runtime.policy import CARD, SHIPPED
from speckv.types import Controller

POLICY = "policy"
RULE = "controller.json"
FORMAT = "speckv-controller"
FORMAT_VERSION = 1


def save_rule(folder: Path, controller: FixedGamma | BestFixedGamma) -> None:
    """Writes a controller that is a handful of numbers."""
    gammas: object = controller.gamma if isinstance(controller, FixedGamma) else controller.gammas
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "gamma": gammas}
    write_atomically(folder / RULE, canonical_json(card))


def load_controller(path: Path | str, *, name: str | None = None) -> Controller:
    """Loads a controller from a run folder or from an exported policy's folder.

    Args:
        path: The folder.
        name: Shown in tables in place of the controller's own.

    Raises:
        CheckpointError: if there is none or it is damaged.
        SchemaError: if it was trained on another observation.
    """
    path = Path(path)
    if (path / RULE).is_file():
        rule = _load_rule(path / RULE)
        rule.name = name or rule.name
        return rule
    for folder in (path / POLICY, path):
        if (folder / CARD).is_file():
            return PolicyController.load(folder, name=name)
    raise CheckpointError(
        f"Expected a run folder or an exported policy at {path}, found neither {POLICY}/{CARD}, {CARD} nor {RULE}. "
        "Train one with `python train.py`."
    )


def _load_rule(path: Path) -> FixedGamma | BestFixedGamma:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Train again.") from error
    if not isinstance(card, Mapping) or (card.get("format"), card.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(f'{path}: expected "format": "{FORMAT}", version {FORMAT_VERSION}. Train again.')
    gamma = card.get("gamma")
    if isinstance(gamma, int):
        return FixedGamma(gamma)
    if isinstance(gamma, dict) and all(isinstance(g, int) for g in gamma.values()):
        return BestFixedGamma(gamma)
    raise CheckpointError(f"{path}: expected one gamma or one per compression, got {gamma!r}. Train again.")


def latest_run(runs_dir: Path | str, *, cost: str, traces_sha256: str) -> Path | None:
    """The newest run on a clock and a trace file that has a controller to show, or None.

    Args:
        runs_dir: Where run folders are.
        cost: Name of the cost table.
        traces_sha256: Hash of the trace file.
    """
    found: list[tuple[str, Path]] = []
    for facts_path in Path(runs_dir).glob("*/run.json"):
        folder = facts_path.parent
        try:
            facts = json.loads(facts_path.read_text(encoding="utf-8"))
            started, same = (
                facts["started"],
                (facts["cost"]["name"], facts["traces"]["sha256"]) == (cost, traces_sha256),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same and ((folder / POLICY / CARD).is_file() or (folder / RULE).is_file()):
            found.append((str(started), folder))
    return max(found)[1] if found else None


def shipped_policy(cost: str) -> Path | None:
    """Folder of the policy that comes with SpecKV for a cost table, or None."""
    folder = SHIPPED / cost
    return folder if (folder / CARD).is_file() else None


def load_named(paths: list[Path]) -> list[Controller]:
    """Loads controllers and gives each a name of its own: its agent's, or its folder's where two would agree."""
    loaded = [load_controller(path) for path in paths]
    names = [c.name for c in loaded]
    for controller, path in zip(loaded, paths, strict=True):
        if names.count(controller.name) > 1:
            controller.name = path.resolve().name
    return loaded
