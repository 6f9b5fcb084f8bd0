# SPDX-License-Identifier: Apache-2.0
"""Controllers on disk: a network's two files, or one small file for a controller that is a handful of numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from speckv.errors import CheckpointError
from speckv.files import canonical_json, write_atomically
from speckv.runtime import recurrent
from speckv.runtime.card import CARD, read_format
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.runtime.policy import MlpPolicy, PolicyController
from speckv.runtime.recurrent import LstmController, LstmPolicy
from speckv.types import Controller

POLICY = "policy"
"""Folder of an exported network inside a run folder."""
RULE = "controller.json"
EXPORTED = "speckv-export"
"""Format of a policy made to travel."""
AGENT = "agent.json"
"""Card of a controller that another package knows how to load; its `format` names the loader."""
LOADERS = "speckv.controllers"
"""Entry points by which a package offers loaders: the name is a card's format, the object a `load_controller`."""
FORMAT = "speckv-controller"
FORMAT_VERSION = 1

Rule = ConstantGamma | ConstantPerCompression
Policy = MlpPolicy | LstmPolicy


def controller_of(policy: Policy, *, name: str | None = None) -> Controller:
    """The controller that decides with an exported policy."""
    if isinstance(policy, LstmPolicy):
        return LstmController(policy, name=name)
    return PolicyController.of(policy, name=name)


def save_rule(folder: Path, controller: Rule) -> None:
    """Writes a controller that is a handful of numbers."""
    gamma: object = controller.gamma if isinstance(controller, ConstantGamma) else controller.gammas
    card = {"format": FORMAT, "format_version": FORMAT_VERSION, "name": controller.name, "gamma": gamma}
    write_atomically(folder / RULE, canonical_json(card))


def has_controller(path: Path) -> bool:
    """Whether a folder is a run folder or an exported policy that `load_controller` would find."""
    return (path / RULE).is_file() or _policy_folder(path) is not None


def exported_folder(path: Path) -> Path | None:
    """Where a folder holds a policy made to travel, or None if it holds another controller or none.

    Raises:
        CheckpointError: if it holds a card that cannot be read.
    """
    folder = None if (path / RULE).is_file() else _policy_folder(path)
    return folder if folder is not None and read_format(folder / CARD) == EXPORTED else None


def load_controller(path: Path | str, *, name: str | None = None) -> Controller:
    """Loads a controller from a run folder or from an exported policy's folder.

    Args:
        path: The folder.
        name: Shown in tables in place of the controller's own.

    Raises:
        CheckpointError: if there is none, it is damaged, or no installed package loads its kind.
        SchemaError: if it was trained on another observation.
    """
    path = Path(path)
    if (path / RULE).is_file():
        rule = _load_rule(path / RULE)
        rule.name = name or rule.name
        return rule
    folder = _policy_folder(path)
    if (made_to_travel := exported_folder(path)) is not None:
        # Late, because an export may hold a controller of any kind, and this module loads some of them.
        from speckv.runtime.exported import Policy as Exported

        controller = Exported.load(made_to_travel).controller
        controller.name = name or controller.name
        return controller
    if folder is None and (path / AGENT).is_file():
        return _offered_loader(path / AGENT)(path, name=name)
    if folder is None:
        raise CheckpointError(
            f"Expected a run folder or an exported policy at {path}, found neither {POLICY}/{CARD}, {CARD} nor {RULE}. "
            "Train one with `python train.py agent=ppo`."
        )
    remembers = read_format(folder / CARD) == recurrent.FORMAT
    return controller_of(LstmPolicy.load(folder) if remembers else MlpPolicy.load(folder), name=name)


def name_apart(controllers: Sequence[Controller], paths: Sequence[Path]) -> None:
    """Gives controllers that share a name the names of the folders that they were loaded from."""
    names = [controller.name for controller in controllers]
    for controller, path in zip(controllers, paths, strict=True):
        if names.count(controller.name) > 1:
            controller.name = path.resolve().name


def _offered_loader(card: Path) -> Callable[..., Controller]:
    """What loads a controller of a card's format: an installed package offers it."""
    kind = read_format(card)
    found = [point for point in entry_points(group=LOADERS) if point.name == kind]
    if not found:
        raise CheckpointError(
            f"{card}: expected an installed package that offers to load {kind!r} (entry point group {LOADERS!r}), "
            "found none. SpecKV's own agents offer it once installed: `pip install -e .` in the checkout."
        )
    load: Callable[..., Controller] = found[0].load()
    return load


def _policy_folder(path: Path) -> Path | None:
    return next((folder for folder in (path / POLICY, path) if (folder / CARD).is_file()), None)


def _load_rule(path: Path) -> Rule:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Train again.") from error
    if not isinstance(card, Mapping) or (card.get("format"), card.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(f'{path}: expected "format": "{FORMAT}", version {FORMAT_VERSION}. Train again.')
    name, gamma = card.get("name"), card.get("gamma")
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: expected a name, got {name!r}. Train again.")
    if type(gamma) is int:
        return ConstantGamma(gamma, name=name)
    if isinstance(gamma, dict) and all(type(g) is int for g in gamma.values()):
        return ConstantPerCompression(gamma, name=name)
    raise CheckpointError(f"{path}: expected one gamma or one per compression, got {gamma!r}. Train again.")
