# SPDX-License-Identifier: Apache-2.0
"""What a controller sees inside a step, after each drafted token: the step's observation and the draft so far."""

import numpy as np
from numpy.typing import NDArray

from speckv.observation.features import GAMMA_SCALE
from speckv.observation.schema import SCHEMA, ObservationField, ObservationSchema
from speckv.types import FloatArray, IntArray

DRAFT_FIELDS = (
    ObservationField("depth", "1", 0.0, 1.0, "Tokens drafted so far in this step, over 16"),
    ObservationField("token_entropy", "nats", 0.0, 12.0, "Draft's entropy at the newest drafted token; 0 before one"),
    ObservationField("token_confidence", "1", 0.0, 1.0, "Draft's top-1 probability there; 1 before one"),
    ObservationField("token_margin", "1", 0.0, 1.0, "Draft's top-1 minus top-2 probability there; 1 before one"),
    ObservationField(
        "step_entropy_mean", "nats", 0.0, 12.0, "Draft's mean entropy over this step's tokens; 0 at first"
    ),
    ObservationField("step_entropy_max", "nats", 0.0, 12.0, "Draft's greatest entropy over them; 0 at first"),
    ObservationField("step_confidence_min", "1", 0.0, 1.0, "Draft's least top-1 probability over them; 1 at first"),
    ObservationField(
        "step_log_confidence", "nats", -12.0, 0.0, "Sum of the logarithms of its top-1 probabilities; 0 at first"
    ),
)
"""Features of the draft so far, in the order of the columns of `summarise_draft`."""

STOPPING_SCHEMA = ObservationSchema(version=SCHEMA.version, fields=(*SCHEMA.fields, *DRAFT_FIELDS))
"""What `observe_draft` renders: the features of a step's start, then those of the draft so far."""

DRAFT_SIGNALS = slice(1, 4)
"""Columns of a summary that hold the newest token's own signals, in the order of `StepOutcome.draft_signals`."""

_LOW = np.array([f.low for f in DRAFT_FIELDS], np.float32)
_HIGH = np.array([f.high for f in DRAFT_FIELDS], np.float32)
LEAST_PROBABILITY = 1e-9
"""Before a logarithm is taken."""
_DEPTH = STOPPING_SCHEMA.index("depth")


def summarise_draft(signals: NDArray[np.floating]) -> FloatArray:
    """Features of every prefix of a draft.

    Args:
        signals: Shape [N, depth, 3]: entropy, confidence, margin of each drafted token.

    Returns:
        Shape [N, depth + 1, 8], columns as in `DRAFT_FIELDS` and within their bounds: row k sums up the first k tokens.

    >>> signals = np.array([[[1.0, 0.5, 0.25], [2.0, 0.25, 0.0]]])
    >>> summarise_draft(signals)[0, :, :4].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0625, 1.0, 0.5, 0.25], [0.125, 2.0, 0.25, 0.0]]
    """
    number, depth, _ = signals.shape
    out = np.empty((number, depth + 1, len(DRAFT_FIELDS)), np.float32)
    out[:, 0] = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    counts = np.arange(1, depth + 1)
    entropy, confidence = signals[..., 0], signals[..., 1]
    out[:, 1:, 0] = counts / GAMMA_SCALE
    out[:, 1:, 1:4] = signals
    # One addition after the other, so that a mean does not depend on how many tokens follow.
    out[:, 1:, 4] = np.cumsum(entropy, axis=1, dtype=np.float64) / counts
    out[:, 1:, 5] = np.maximum.accumulate(entropy, axis=1)
    out[:, 1:, 6] = np.minimum.accumulate(confidence, axis=1)
    out[:, 1:, 7] = np.cumsum(np.log(np.maximum(confidence, LEAST_PROBABILITY)), axis=1, dtype=np.float64)
    return np.minimum(np.maximum(out, _LOW, out=out), _HIGH, out=out)


def drafted_so_far(observations: FloatArray) -> IntArray:
    """Tokens drafted in the present step, read off observations as `STOPPING_SCHEMA` lists them.

    Args:
        observations: Shape [..., features].

    Returns:
        Shape [...].
    """
    depth: IntArray = np.rint(observations[..., _DEPTH] * GAMMA_SCALE).astype(np.int64)
    return depth


def observe_draft(observations: FloatArray, draft: FloatArray) -> FloatArray:
    """Joins what was seen before a step with the draft so far.

    Args:
        observations: Shape [N, features]; from `observe`, before the step.
        draft: Shape [N, 8]; a row of `summarise_draft` each.

    Returns:
        Shape [N, features + 8], as `STOPPING_SCHEMA` lists.
    """
    return np.concatenate([observations, draft], axis=1)
