# SPDX-License-Identifier: Apache-2.0
"""Exact replay of recorded decoding, many sequences at once: any controller's tokens and time, with no model.

The text does not depend on gamma, so from output position `i` a step that drafts `gamma` tokens accepts the smaller of
`gamma` and the recorded accepted length, emits one token more, and goes on from there. Time comes from a cost table.
"""

from speckv.replay.batch import ReplayBatch, ReplayStep
from speckv.replay.compiled import CompiledTraces
from speckv.replay.control import VisitedStates, decide, replay_controller, visit
from speckv.replay.optimum import OptimalPlan, clairvoyant, plan_optimum
from speckv.replay.record import ReplayRecord, StepLog
from speckv.replay.runs import autoregressive, replay_fixed, replay_policy
from speckv.replay.stream import outcome_of, replay_stream

__all__ = [
    "CompiledTraces",
    "OptimalPlan",
    "ReplayBatch",
    "ReplayRecord",
    "ReplayStep",
    "StepLog",
    "VisitedStates",
    "autoregressive",
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
