# SPDX-License-Identifier: Apache-2.0
"""What a controller decides from: the same functions in replay, in live decoding and in an exported controller.

An observation describes the past alone: the draft's signals at the tokens that the target has tested, how many were
accepted, the target's certainty at the newest token, and what a step costs. Drafted tokens behind the first rejected
one are left out, because they describe a text that was never emitted.
"""

from speckv.observation.features import (
    BITS_SCALE,
    DRAFT_FEATURES,
    DRAFT_SIGNALS,
    GROUPS,
    LAG_HORIZON,
    PRIOR_ACCEPTANCE,
    PRIOR_TOKENS,
    SCHEMA,
    STOPPING_SCHEMA,
    TESTED_FEATURES,
    drafted_so_far,
    hidden_columns,
    hide_from,
    observe_draft,
    running_summary,
    summarise_draft,
    summarise_tested,
)
from speckv.observation.history import (
    DECAY,
    History,
    RequestMemory,
    StaticContext,
    StepBatch,
    observe,
    update_history,
)
from speckv.observation.schema import ObservationField, ObservationSchema

__all__ = [
    "BITS_SCALE",
    "DECAY",
    "DRAFT_FEATURES",
    "DRAFT_SIGNALS",
    "GROUPS",
    "LAG_HORIZON",
    "PRIOR_ACCEPTANCE",
    "PRIOR_TOKENS",
    "SCHEMA",
    "STOPPING_SCHEMA",
    "TESTED_FEATURES",
    "History",
    "ObservationField",
    "ObservationSchema",
    "RequestMemory",
    "StaticContext",
    "StepBatch",
    "drafted_so_far",
    "hidden_columns",
    "hide_from",
    "observe",
    "observe_draft",
    "running_summary",
    "summarise_draft",
    "summarise_tested",
    "update_history",
]
