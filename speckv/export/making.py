# SPDX-License-Identifier: Apache-2.0
"""A policy from a run folder, with the deployment metadata that a decoding library needs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from speckv.cost import CostTable
from speckv.evaluation.replays import compile_pair, tune_fixed
from speckv.export.source import Source
from speckv.replay import visit
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import Controller


def make_policy(
    source: Source, controller: Controller | None = None, *, name: str | None = None, learns: bool | None = None
) -> Policy:
    """Makes the policy of a folder, or of another controller with that training data; `learns=False` freezes a learner.

    Raises:
        CheckpointError: if the folder holds no policy, or a damaged one.
    """
    stored = source.policy() if controller is None else None
    controller = stored.controller if stored is not None else controller
    assert controller is not None
    train = source.traces.select(split="train")
    return Policy.of(
        controller,
        learns=learns,
        name=name or controller.name,
        trained_on={
            **recording_facts(train),
            "traces_sha256": source.traces.sha256,
            "cost": source.cost.name,
            "cost_sha256": source.cost.sha256,
            "cost_kind": source.cost.kind,
            **(stored.trained_on if stored is not None else {}),
        },
        **deployment(train, source.cost, tune_fixed(train, source.cost).best()),
    )


def deployment(train: TraceSet, cost: CostTable, best: Mapping[str, int]) -> dict[str, Any]:
    """Attributes of a policy for decode loops; `best`, the best fixed gamma by compression, becomes the fallback."""
    seen = visit(*compile_pair(train, cost), ConstantPerCompression(best)).observations
    return {
        "fallback": {compression: int(gamma) for compression, gamma in best.items()},
        "gamma_max": train.metadata.gamma_max,
        "typical": seen.mean(axis=0, dtype=np.float64).astype(np.float32),
        "cost_ratio": {c: float(cost.cost_ratio(c)) for c in train.compressions},
    }


def recording_facts(traces: TraceSet) -> dict[str, Any]:
    """Models, vocabulary and sampling of recordings, for a policy's provenance."""
    metadata = traces.metadata
    return {
        "target": metadata.target_id,
        "draft": metadata.draft_id,
        "tokenizer_sha256": metadata.tokenizer_sha256,
        "vocab_size": metadata.vocab_size,
        "compressions": list(traces.compressions),
        "sampling": dict(metadata.sampling),
    }
