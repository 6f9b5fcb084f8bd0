# SPDX-License-Identifier: Apache-2.0
"""Exact replay of recorded decoding, many sequences at once: the tokens and time of any controller, without models.

The text does not depend on gamma, so from output position `i` a step that drafts `gamma` tokens accepts the smaller of
`gamma` and the recorded accepted length, emits one token more, and goes on from there. Time comes from a cost table.
"""

from speckv.replay.batch import CompiledTraces, ReplayBatch, ReplayStep
from speckv.replay.optimum import OptimalPlan, clairvoyant, plan_optimum
from speckv.replay.runs import (
    ReplayRecord,
    StepLog,
    VisitedStates,
    decide,
    outcome_of,
    replay_controller,
    replay_fixed,
    replay_policy,
    replay_stream,
    visit,
)

__all__ = [
    "CompiledTraces",
    "OptimalPlan",
    "ReplayBatch",
    "ReplayRecord",
    "ReplayStep",
    "StepLog",
    "VisitedStates",
    "clairvoyant",
    "decide",
    "outcome_of",
    "plan_optimum",
    "replay_controller",
    "replay_fixed",
    "replay_policy",
    "replay_stream",
    "visit",
]
