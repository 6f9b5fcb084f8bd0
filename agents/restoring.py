# SPDX-License-Identifier: Apache-2.0
"""Stored agents put together again: what runs a policy needs this module, and neither learners nor recordings.

A folder that `speckv.export.hf` writes holds a copy of it in which `RESTORE` has one entry, so an entry imports nothing
but what restores its agent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.bandits.arms import Exp3Spec, GaussianThompson, Ucb1, UcbSpec
from agents.bandits.calibrated import CalibratedSettings, CalibratedStopping
from agents.bandits.hazard import DiscountedHazardThompson, HazardThompson
from agents.bandits.linear import LinThompson, LinUcb
from agents.bandits.neural import NeuralLinear
from agents.bandits.settings import (
    ArmsSettings,
    DiscountedHazardSettings,
    HazardSettings,
    LinearSettings,
    NeuralLinearSettings,
    TapOutSettings,
    UcbSettings,
)
from agents.bandits.storing import StoredBandit
from agents.bandits.tapout import TapOut
from agents.building import build_settings
from agents.parts import COMPRESSIONS, Parts
from agents.per_request import PerRequestGamma, PerRequestSettings, RequestTimes
from agents.rules.adaedl import AdaEdl, AdaEdlSettings
from agents.rules.gammatune import GammaTuneSettings, make_gammatune
from agents.rules.goodput import Goodput, GoodputSettings
from agents.rules.kangaroo import Kangaroo, KangarooSettings
from agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from agents.rules.sglang_ema import SglangEma, SglangEmaSettings
from agents.rules.svip import Svip, SvipSettings
from agents.rules.transformers_confidence import TransformersConfidence, TransformersConfidenceSettings
from agents.rules.transformers_heuristic import TransformersHeuristic, TransformersHeuristicSettings
from agents.speckv_mlp.controllers import SpecKVMlp, SpecKVMlpCost
from agents.speckv_mlp.settings import SpecKVMlpCostSettings, SpecKVMlpSettings
from agents.survival.controllers import SurvivalGamma, SurvivalStopping
from agents.survival.settings import SurvivalSettings
from speckv.errors import CheckpointError, ConfigError
from speckv.runtime.kinds import Packed
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """How one kind of agent comes back.

    Attributes:
        settings: Class of its settings.
        restore: Settings and stored parts -> the controller that was stored.
    """

    settings: type[Any]
    restore: Callable[[Any, Parts], Controller]


def _rule(settings: type[Any], kind: Callable[[Any], Controller]) -> Restoring:
    """An agent that is nothing but its settings."""
    return Restoring(settings=settings, restore=lambda s, _: kind(s))


RESTORE: Mapping[str, Restoring] = {
    "adaedl": _rule(AdaEdlSettings, AdaEdl),
    "calibrated_stopping": Restoring(settings=CalibratedSettings, restore=StoredBandit(CalibratedStopping)),
    "exp3spec": Restoring(settings=ArmsSettings, restore=StoredBandit(Exp3Spec)),
    "gammatune": _rule(GammaTuneSettings, make_gammatune),
    "goodput": Restoring(settings=GoodputSettings, restore=lambda s, parts: Goodput(s, parts.needed_times())),
    "hazard_thompson": Restoring(settings=HazardSettings, restore=StoredBandit(HazardThompson, "scaled")),
    "hazard_thompson_discounted": Restoring(
        settings=DiscountedHazardSettings, restore=StoredBandit(DiscountedHazardThompson, "scaled")
    ),
    "kangaroo": _rule(KangarooSettings, Kangaroo),
    "lints": Restoring(settings=LinearSettings, restore=StoredBandit(LinThompson, "scaled")),
    "linucb": Restoring(settings=LinearSettings, restore=StoredBandit(LinUcb, "scaled")),
    "llama_cpp": _rule(LlamaCppSettings, LlamaCpp),
    "neural_linear": Restoring(settings=NeuralLinearSettings, restore=StoredBandit(NeuralLinear, "network")),
    "per_request": Restoring(
        settings=PerRequestSettings,
        restore=lambda _, parts: PerRequestGamma(
            RequestTimes(parts.needed_times(), *(parts.needed_array(name) for name in ("mean", "std", "weights"))),
            name="per-request",
        ),
    ),
    "sglang_ema": _rule(SglangEmaSettings, SglangEma),
    "speckv_mlp": Restoring(
        settings=SpecKVMlpSettings, restore=lambda s, parts: SpecKVMlp(parts.network("acceptance"), s.gammas)
    ),
    "speckv_mlp_cost": Restoring(
        settings=SpecKVMlpCostSettings,
        restore=lambda s, parts: SpecKVMlpCost(SpecKVMlp(parts.network("acceptance"), s.gammas), parts.needed_times()),
    ),
    "survival": Restoring(
        settings=SurvivalSettings,
        restore=lambda _, parts: SurvivalGamma(
            parts.network("before"), parts.needed_times(), parts.needed_array("floor")
        ),
    ),
    "survival_stopping": Restoring(
        settings=SurvivalSettings,
        restore=lambda _, parts: SurvivalStopping(
            parts.network("before"),
            parts.network("inside"),
            parts.needed_times(),
            parts.needed_array("floor"),
            parts.needed_array("price_scale"),
        ),
    ),
    "svip": _rule(SvipSettings, Svip),
    "tapout": Restoring(settings=TapOutSettings, restore=StoredBandit(TapOut)),
    "thompson": Restoring(settings=ArmsSettings, restore=StoredBandit(GaussianThompson)),
    "transformers_confidence": _rule(TransformersConfidenceSettings, TransformersConfidence),
    "transformers_heuristic": _rule(TransformersHeuristicSettings, TransformersHeuristic),
    "ucb1": Restoring(settings=UcbSettings, restore=StoredBandit(Ucb1)),
    "ucbspec": Restoring(settings=UcbSettings, restore=StoredBandit(UcbSpec)),
}
"""Agents that are stored as settings and parts, by name; the others are stored as networks or numbers."""


def unpack(packed: Packed) -> Controller | None:
    """Puts an agent together, or gives None if there is none of that kind.

    Raises:
        CheckpointError: if a part is missing or malformed.
    """
    agent = RESTORE.get(packed.kind)
    if agent is None:
        return None
    try:
        settings = build_settings(agent.settings, packed.settings["agent"], "agent")
    except ConfigError as error:
        raise CheckpointError(f"{error} Export the policy again.") from error
    arrays = dict(packed.arrays)
    if COMPRESSIONS in packed.settings:
        arrays[COMPRESSIONS] = np.array(packed.settings[COMPRESSIONS])
    return agent.restore(settings, Parts.from_arrays(arrays))
