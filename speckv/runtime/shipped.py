# SPDX-License-Identifier: Apache-2.0
"""The policies that come with SpecKV.

`shipped` is the supervised one, token by token, that learns the times of steps while it decodes: one for draft models,
one for prompt lookup. `COST-ppo` are PPO's, for `init_from`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speckv.cost.times import StepTimes
from speckv.runtime.storage import SUFFIX
from speckv.types import Controller

if TYPE_CHECKING:
    from speckv.cost import CostTable

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "policies"
WORD, LOOKUP_WORD = "shipped", "shipped-lookup"
"""Names by which `speckv.runtime.load` finds them."""
BASE, LOOKUP = "self-timed", "self-timed-lookup"
LEARNER = "-ppo"
"""Ends the names of policies that a learner in an environment can start from."""


def shipped_policy(name: str) -> Path:
    """Folder of a shipped policy, whether there is one or not."""
    return SHIPPED / f"{name}{SUFFIX}"


def shipped_for(draft: str | None = None) -> Path:
    """Folder of the policy that is `shipped` for a draft, named as in recordings; by default for a draft model."""
    return shipped_policy(LOOKUP if (draft or "").startswith(("lookup", "prompt-lookup")) else BASE)


def named(folder: Path | str) -> Path:
    """The folder of a shipped policy for one of its names; any other folder as it is."""
    return {WORD: shipped_policy(BASE), LOOKUP_WORD: shipped_policy(LOOKUP)}.get(str(folder), Path(folder))


def with_cost_table(controller: Controller, cost: "CostTable", compressions: Sequence[str]) -> Controller:
    """Gives a controller the times of another cost table at some compressions; returns it as it is if it has none."""
    times: StepTimes | None = getattr(controller, "times", None)
    if times is None:
        return controller
    moved: Controller = controller.with_times(  # type: ignore[attr-defined]
        StepTimes.of(cost, compressions, gamma_max=times.verify_s.shape[1] - 1)
    )
    moved.name = controller.name
    return moved
