# SPDX-License-Identifier: Apache-2.0
"""Users' own classes and functions, named as "module:name".

Importing a module runs its code. A class that a stored policy names is used only if its module is imported already, or
if the program has called `allow_stored`, as SpecKV's own commands do.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from speckv.errors import ConfigError, nearest

_allowed = False


def allow_stored() -> None:
    """Lets stored policies name classes whose modules are imported when the policy is loaded."""
    global _allowed
    _allowed = True


def require_importable(path: str) -> None:
    """Passes if a class that a stored policy names may be imported."""
    module = path.partition(":")[0]
    if not _allowed and module not in sys.modules:
        raise ConfigError(
            f"Expected module {module!r}, which the policy names, to be imported before the policy is loaded: loading "
            "runs no code that you did not import. Import it, or call speckv.importing.allow_stored()."
        )


def is_import_path(text: str) -> bool:
    """Whether a text has the form "module:name".

    >>> is_import_path("my_module:MyRule"), is_import_path("ppo"), is_import_path("runs/a:b")
    (True, False, False)
    """
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def import_named(path: str) -> Any:
    """Imports what "module:name" names; modules in the current folder are found, too.

    Raises:
        ConfigError: if there is no such module, importing it fails, or it has no such name.
    """
    if not is_import_path(path):
        raise ConfigError(f'Expected "module:name", such as my_module:MyRule, got {path!r}.')
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
    except Exception as error:  # whatever the user's module does when imported
        raise ConfigError(
            f"Expected {path!r} to name something that can be imported, got {type(error).__name__}: {error}. Run the "
            "command in the folder of the module, or install it."
        ) from error
    if not hasattr(found, name):
        known = [key for key in vars(found) if not key.startswith("_")]
        raise ConfigError(f"Expected {name!r} in module {module}, found none.{nearest(name, known)}")
    return getattr(found, name)
