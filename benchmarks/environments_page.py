# SPDX-License-Identifier: Apache-2.0
"""Reference sections of docs/environments.md, from the docstrings of the environments."""

import inspect
import re
from collections.abc import Mapping

import gymnasium as gym

from speckv import envs

IDS = (envs.GAMMA_SELECTION, envs.DRAFT_STOPPING, envs.LIVE_DECODING)


def reference(name: str) -> str:
    """The docstring of an environment's class, its headings one level down, with the entry points."""
    spec = gym.registry[name]
    module, _, qualified = str(spec.entry_point).partition(":")
    kind = getattr(__import__(module, fromlist=[qualified]), qualified)
    text = inspect.cleandoc(kind.__doc__ or "").partition("\nArgs:")[0].strip()
    text = text.replace("## Description\n", "")
    text = re.sub(r"^## ", "### ", text, flags=re.MULTILINE)
    vector = f", `{spec.vector_entry_point}` through `gym.make_vec`" if spec.vector_entry_point else ""
    return f"Class: `{spec.entry_point}`{vector}.\n\n{text}"


def tables() -> dict[str, str]:
    """By environment id, what stands on the page."""
    found: Mapping[str, str] = {name: reference(name) for name in IDS}
    return dict(found)
