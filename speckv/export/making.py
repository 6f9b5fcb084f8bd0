# SPDX-License-Identifier: Apache-2.0
"""A policy from a run folder, with the deployment metadata that a decoding library needs."""

import numpy as np

from speckv.evaluation.replays import compile_pair, tune_fixed
from speckv.export.source import Source
from speckv.replay import visit
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantPerCompression
from speckv.runtime.policy import load_controller
from speckv.types import Controller


def make_policy(source: Source, *, name: str | None = None, learns: bool | None = None) -> Policy:
    """Makes the policy of a folder.

    Args:
        source: The folder, and what it was trained on.
        name: Shown in tables; by default the controller's.
        learns: Whether a learner goes on learning where it runs; by default it does.

    Raises:
        CheckpointError: if the folder holds no policy, or a damaged one.
    """
    return of_controller(source, load_controller(source.folder), name=name, learns=learns)


def of_controller(
    source: Source, controller: Controller, *, name: str | None = None, learns: bool | None = None
) -> Policy:
    """The same for a controller that is at hand; see `make_policy`."""
    metadata, train = source.traces.metadata, source.traces.select(split="train")
    best = tune_fixed(train, source.cost).best()
    compiled, cost = compile_pair(train, source.cost)
    seen = visit(compiled, cost, ConstantPerCompression(best)).observations
    return Policy.of(
        controller,
        learns=learns,
        name=name or controller.name,
        fallback={compression: int(gamma) for compression, gamma in best.items()},
        gamma_max=metadata.gamma_max,
        typical=seen.mean(axis=0, dtype=np.float64).astype(np.float32),
        cost_ratio={c: float(source.cost.cost_ratio(c)) for c in train.compressions},
        trained_on={
            "target": metadata.target_id,
            "draft": metadata.draft_id,
            "tokenizer_sha256": metadata.tokenizer_sha256,
            "vocab_size": metadata.vocab_size,
            "compressions": list(train.compressions),
            "sampling": dict(metadata.sampling),
            "traces_sha256": source.traces.sha256,
            "cost_table": source.cost.name,
            "cost_table_sha256": source.cost_sha256,
            "cost_kind": source.cost.kind,
        },
    )
