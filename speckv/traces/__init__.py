# SPDX-License-Identifier: Apache-2.0
"""Recorded decoding: the file format, and what one recorded sequence says about every possible step.

The text does not depend on gamma, so one recording of the target's output, with the draft's proposal at every
position, holds the outcome of every step that any controller could have taken. Along an accepted run the draft reads
exactly the emitted text: one value per position is enough. Past a mismatch it reads its own words, and because a
drafter sees the prefix alone, all steps whose first mismatch is at position `m` share one roll-out from `m`.
"""

from speckv.traces.collection import TraceSet, find_traces, merge, recording_identity, split_validation
from speckv.traces.parquet import METADATA_KEY
from speckv.traces.schema import (
    NO_TOKEN,
    ROLLOUT_LENGTH,
    SCHEMA_VERSION,
    TraceMetadata,
    TraceSequence,
    accepted_lengths,
    round_mantissa,
)
from speckv.types import GAMMA_MAX

__all__ = [
    "GAMMA_MAX",
    "METADATA_KEY",
    "NO_TOKEN",
    "ROLLOUT_LENGTH",
    "SCHEMA_VERSION",
    "TraceMetadata",
    "TraceSequence",
    "TraceSet",
    "accepted_lengths",
    "find_traces",
    "merge",
    "recording_identity",
    "round_mantissa",
    "split_validation",
]
