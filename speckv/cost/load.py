# SPDX-License-Identifier: Apache-2.0
"""Pass times under load: a compression's entry at a batch that lies between measured ones."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from speckv.cost.entry import CostEntry
from speckv.errors import ConfigError, CostTableError

SAME = ("compression", "dtype", "reference_context", "draft_widths", "verify_widths")
"""What entries of one compression at several batches must share."""


def check_loads(base: CostEntry, others: Sequence[CostEntry]) -> None:
    """Passes if entries of one compression differ in their batch alone, beside the times.

    Raises:
        CostTableError: naming the field that differs, or a batch that comes twice.
    """
    for entry in others:
        for name in SAME:
            if getattr(entry, name) != getattr(base, name):
                raise CostTableError(
                    f"{name}: expected {getattr(base, name)!r} at batch {entry.batch}, as at batch {base.batch}, "
                    f"got {getattr(entry, name)!r}."
                )
    batches = [entry.batch for entry in (base, *others)]
    twice = sorted({b for b in batches if batches.count(b) > 1})
    if twice:
        raise CostTableError(f"batch: expected every batch once, got {base.compression} at batch {twice[0]} again.")


def at_batch(entries: Iterable[CostEntry], batch: int, table: str) -> CostEntry:
    """The entry of one compression at a batch.

    Between two measured batches times are linear in the batch. That is exact where a pass reads its weights once and
    then works row by row, seconds = a + b * batch, and exact where it is flat; around the knee between the two it is
    too slow by at most what the neighbouring measured batches leave open. Measure more batches there.

    Args:
        entries: Of one compression, each at another batch.
        batch: Sequences that decode together, at least 1.
        table: Name of the cost table, for the message.

    Raises:
        CostTableError: if the batch lies outside the measured ones.
    """
    known = sorted(entries, key=lambda entry: entry.batch)
    batches = [entry.batch for entry in known]
    if not batches[0] <= batch <= batches[-1]:
        covered = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
        raise CostTableError(
            f"Expected a batch that cost table {table!r} covers for {known[0].compression}, {covered}, got {batch}. "
            f"Calibrate with it: batches=[1,{max(batch, 2)}]."
        )
    if batch in batches:
        return known[batches.index(batch)]
    low, high = next((a, b) for a, b in itertools.pairwise(known) if a.batch < batch < b.batch)
    share = (batch - low.batch) / (high.batch - low.batch)

    def between(name: str) -> tuple[float, ...]:
        mixed = (1 - share) * np.asarray(getattr(low, name)) + share * np.asarray(getattr(high, name))
        return tuple(mixed.tolist())

    return replace(
        low,
        batch=batch,
        spread=(),
        draft_s=between("draft_s"),
        draft_context_slope_s=between("draft_context_slope_s"),
        verify_s=between("verify_s"),
        verify_context_slope_s=between("verify_context_slope_s"),
    )


def require_single_request(who: str, batch: int) -> None:
    """Passes if a controller that decides token by token is timed at batch 1.

    In a batch, every pass goes on until the last row has stopped drafting. A replay of one request charges each row
    for its own tokens alone, so it overstates what stopping early saves.

    Args:
        who: Name of the controller or agent.
        batch: Sequences that decode together in the cost table.

    Raises:
        ConfigError: if `batch` is above 1.
    """
    if batch > 1:
        raise ConfigError(
            f"Expected cost.batch 1 for {who}, which decides token by token, got {batch}: rows of a batch share their "
            "draft passes until the last one stops, and a replay does not charge for that. Set cost.batch=1, or choose "
            "a constant gamma (agent=best_fixed)."
        )
