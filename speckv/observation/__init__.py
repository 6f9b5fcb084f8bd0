# SPDX-License-Identifier: Apache-2.0
"""What a controller sees: one function for the replay, the live engine and an exported policy.

An observation describes the past alone: the draft's signals at the tokens that the target has judged, what became of
them, the target's own certainty at the newest token, and what a step costs. Signals of drafted tokens behind the first
rejected one are left out, because they describe a text that was never emitted.

The life of an observation: `History.start` when the prefill has emitted the first token; after every decode step
`update_history` with a `StepBatch`; before every step `observe`. Inside a step `observe_draft` adds the tokens drafted
so far. Everything works on `N` requests at once; a live request is `N = 1`.
"""

from speckv.observation.draft import (
    DRAFT_FIELDS,
    DRAFT_SIGNALS,
    STOPPING_SCHEMA,
    drafted_so_far,
    observe_draft,
    summarise_draft,
)
from speckv.observation.features import StaticContext, observe
from speckv.observation.groups import GROUPS, hidden_columns, hide_from
from speckv.observation.history import History, next_draft_lag, update_history
from speckv.observation.schema import SCHEMA, ObservationField, ObservationSchema
from speckv.observation.step import TESTED_SUMMARY, StepBatch, running_summary, summarise_tested

__all__ = [
    "DRAFT_FIELDS",
    "DRAFT_SIGNALS",
    "GROUPS",
    "SCHEMA",
    "STOPPING_SCHEMA",
    "TESTED_SUMMARY",
    "History",
    "ObservationField",
    "ObservationSchema",
    "StaticContext",
    "StepBatch",
    "drafted_so_far",
    "hidden_columns",
    "hide_from",
    "next_draft_lag",
    "observe",
    "observe_draft",
    "running_summary",
    "summarise_draft",
    "summarise_tested",
    "update_history",
]
