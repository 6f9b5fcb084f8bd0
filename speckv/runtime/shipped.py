# SPDX-License-Identifier: Apache-2.0
"""The policies that come with SpecKV: the supervised one, token by token, for each shipped cost table.

For any other cost table, `shipped` is the policy of `cpu-2core` with the times of that table: its predictions of
acceptance do not depend on the machine.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from speckv.cost.times import StepTimes
from speckv.runtime.policy import Policy
from speckv.runtime.storage import SUFFIX, find_policy
from speckv.types import Controller

if TYPE_CHECKING:
    from speckv.cost import CostTable

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "policies"
"""Holds `COST.speckv` for each of some cost tables, and `COST-ppo.speckv` for `init_from`."""
WORD = "shipped"
BASE = "cpu-2core"
"""Cost table of the policy that is used for cost tables without one."""
LEARNER = "-ppo"
"""Ends the names of policies that a learner in an environment can start from."""


def shipped_policy(name: str) -> Path:
    """Folder of a shipped policy, whether there is one or not; that of a cost table has the table's name."""
    return SHIPPED / f"{name}{SUFFIX}"


def shipped_for(cost: str) -> Path:
    """Folder of the policy that is `shipped` for a cost table."""
    own = shipped_policy(cost)
    return own if find_policy(own) is not None else shipped_policy(BASE)


def load_for(folder: Path | str, table: "CostTable") -> Policy:
    """Loads a policy; a shipped one that was trained on other times gets those of the table.

    Raises:
        CheckpointError: if the folder holds no policy, or a damaged one.
    """
    policy = Policy.load(folder)
    trained = policy.trained_on.get("cost_sha256")
    if Path(folder).resolve().parent != SHIPPED.resolve() or trained in (None, table.sha256):
        return policy
    return replace(
        policy,
        controller=with_cost_table(policy.controller, table, table.compressions),
        cost_ratio={name: float(table.cost_ratio(name)) for name in table.compressions},
        trained_on={**policy.trained_on, "cost": table.name, "cost_sha256": table.sha256, "times_only": True},
    )


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
