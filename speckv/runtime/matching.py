# SPDX-License-Identifier: Apache-2.0
"""Warns, once, where a policy was made for other models, another cost table or another machine than are in use.

The text that is decoded is the target's in any case; only the speed depends on these.
"""

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from speckv.runtime.policy import Policy

if TYPE_CHECKING:
    from speckv.cost import CostTable

logger = logging.getLogger(__name__)
_FORMATS = re.compile(r"(\.gguf|[-_.](gguf|awq|gptq|bnb|\d+bits?|int\d|fp?\d+|bf16|mlx|i?q\d\w*|[0-9a-f]{16}))$")
"""Endings of a model's name that state its format, or the hash of a converted file."""
_ON_HUB = re.compile(r"models--[^/]*--([^/]+)/snapshots/")
MOST_LOAD = 0.5
"""Share of cores that other programs may keep busy without a warning."""
TRAIN = "speckv profile and speckv train agent=self_timed"
"""What makes a policy for a pair on a machine."""


def model_name(name: str) -> str:
    """A model's name without folder and format: a conversion is the same model.

    >>> model_name("Qwen/Qwen2.5-Coder-0.5B-Instruct") == model_name("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    True
    """
    name, _, layers = name.replace("\\", "/").rstrip("/").partition("[:")
    found = _ON_HUB.search(name)
    name = (found[1] if found else name.rpartition("/")[2]).lower()
    while (shorter := _FORMATS.sub("", name)) != name:
        name = shorter
    return f"{name}[:{layers}" if layers else name


def differences(
    policy: Policy,
    *,
    target: str | None = None,
    draft: str | None = None,
    cost: "CostTable | None" = None,
    compression: str | None = None,
) -> list[str]:
    """What differs from the policy's training, in words; what is None or was not recorded is not compared."""
    known = policy.trained_on
    found = []
    for what, here in (("target", target), ("draft", draft)):
        trained = known.get(what)
        if here and trained and model_name(here) != model_name(str(trained)):
            found.append(f"{what} {model_name(str(trained))} (here {model_name(here)})")
    table = str(known.get("cost") or "")
    if cost is not None and table and table.partition("@")[0] != cost.name.partition("@")[0]:
        found.append(f"cost table {table} (here {cost.name})")
    elif cost is not None and "@" not in table + cost.name and known.get("cost_sha256") not in (None, cost.sha256):
        found.append(f"other times of cost table {table}")
    if compression and policy.cost_ratio and compression not in policy.cost_ratio:
        found.append(f"compressions {', '.join(policy.cost_ratio)} (here {compression})")
    return found


def warn_of_differences(
    policy: Policy,
    *,
    target: str | None = None,
    draft: str | None = None,
    cost: "CostTable | None" = None,
    compression: str | None = None,
) -> None:
    """Logs one line if the policy was trained for something else; see `differences`."""
    found = differences(policy, target=target, draft=draft, cost=cost, compression=compression)
    if found:
        _warn(
            f"{policy.name} was trained for {', '.join(found)}: the text stays right, but the speed may not be the "
            f"best. For a policy of your own: {TRAIN}."
        )


def warn_of_machine(table: "CostTable", here: Mapping[str, str]) -> None:
    """Logs one line if a cost table was measured on another machine; `here` describes this one."""
    keys = ("accelerator",) if table.machine.get("accelerator", "none") != "none" else ("processor", "cores")
    pairs = [(str(table.machine.get(key, "")), here.get(key, "")) for key in (*keys, "accelerator")]
    if all(_words(there) <= _words(this) for there, this in pairs):
        return
    there, this = (_describe(machine) for machine in (table.machine, here))
    _warn(
        f"cost table {table.name} was measured on {there}, and this is {this}. Measure it: speckv calibrate name=mine, "
        "then cost.table=mine.json."
    )


def warn_of_load(busy: int, cores: int) -> None:
    """Logs one line if other programs keep more than a share of a machine's cores busy."""
    if busy > MOST_LOAD * cores:
        _warn(f"{busy} of {cores} cores are busy with other programs: speculation gains less, or nothing, meanwhile.")


def warn_of_no_gain(policy: Policy, compression: str, table: "CostTable") -> None:
    """Logs one line if the policy drafts nothing at a compression, or nothing on a typical text."""
    if policy.never_drafts(compression):
        what = "does not draft"
    elif hasattr(policy.controller, "times") and _typical_gamma(policy, compression, table) == 0:
        what = "drafts little"
    else:
        return
    _warn(
        f"the draft pass takes {table.cost_ratio(compression):.2f} of a target pass at {compression} on cost table "
        f"{table.name}: plain decoding is the fastest there, and {policy.name} {what}."
    )


def _typical_gamma(policy: Policy, compression: str, table: "CostTable") -> int:
    session = policy.session(
        max_new_tokens=None, compression=compression, cost_ratio=table.cost_ratio(compression), hidden={"target"}
    )
    return session.begin_step()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - {"geforce"}


def _describe(machine: Mapping[str, object]) -> str:
    accelerator = str(machine.get("accelerator", "none"))
    cores = f"{machine.get('processor', 'an unknown processor')}, {machine.get('cores', '?')} cores"
    return accelerator if accelerator != "none" else cores


@cache
def _warn(text: str) -> None:
    logger.warning("%s", text)
