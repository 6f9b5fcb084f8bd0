# SPDX-License-Identifier: Apache-2.0
"""A policy that replaces SGLang's adaptive speculation, as a plugin of SGLang.

    SPECKV_POLICY=mine.speckv python -m sglang.launch_server ... --speculative-adaptive

SGLang does not name the requests of a batch and takes one number of draft steps for all. So a batch is treated as one
request: every batch size that has graphs has a session, whose outcomes are means over the batch.
"""

import bisect
import copy
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from speckv.errors import ConfigError
from speckv.integrations.environment import POLICY, named_policy
from speckv.runtime import Policy, Session

logger = logging.getLogger(__name__)

REPLACED = "sglang.srt.speculative.adaptive_spec_params.AdaptiveSpeculativeParams"
"""As of SGLang 0.5.23."""
STEPS = (0, 1, 3, 5, 7)
"""Default draft steps: SGLang's own, and 0."""


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`; does nothing unless SPECKV_POLICY is set."""
    if not os.environ.get(POLICY):
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(REPLACED, SpecKVSpeculativeParams, HookType.REPLACE)


class SpecKVSpeculativeParams:
    """SGLang's `AdaptiveSpecPolicy` with the decisions of an exported policy; constructed by SGLang.

    Args:
        cfg_path: `--speculative-adaptive-config`: batch size -> its `candidate_steps`; the one nearest to the policy's
            gamma is used.
        policy: By default the one that SPECKV_POLICY names.

    Raises:
        ConfigError: if there is no policy, the file names no steps, or the policy learns more than times.
    """

    def __init__(self, initial_steps: int, cfg_path: str | None = None, *, policy: Policy | None = None) -> None:
        if policy is None:
            policy = named_policy()
        if policy.learns_acceptance:
            raise ConfigError(
                f"Expected a policy that learns nothing but times, got {policy.name!r}: SGLang reports "
                "outcomes late and for a whole batch. Export it with --frozen."
            )
        self._policy = policy
        self._steps = _read_steps(cfg_path) if cfg_path else {1: sorted({*STEPS, initial_steps})}
        self._graphs: list[int] | None = None
        self._slots: dict[int, _Slot] = {}
        logger.info("Speculation under %s, steps by batch %s", policy.name, self._steps)

    @property
    def candidate_steps(self) -> list[int]:
        """Numbers of draft steps that the engine prepares."""
        return sorted({step for steps in self._steps.values() for step in steps})

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Sets the batch sizes with graphs."""
        self._graphs = sorted(cuda_graph_bs) if cuda_graph_bs else None

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Number of draft steps for a batch."""
        return self._slot(batch_size).steps

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> int | None:
        """Records accepted tokens; returns the number of draft steps if it changed."""
        return self._slot(batch_size).end(num_correct_drafts_per_req) if num_correct_drafts_per_req else None

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """Batch sizes with graphs at which a number of steps can occur."""
        if self._graphs is None:
            return None
        return [batch for batch in self._graphs if step in self._candidates(batch)]

    def _slot(self, batch_size: int) -> "_Slot":
        padded = self._padded(batch_size)
        if padded not in self._slots:
            policy = self._policy
            if policy.learns:  # a batch size has times of its own
                policy = replace(policy, controller=copy.deepcopy(policy.controller))
            self._slots[padded] = _Slot(policy, self._candidates(padded))
        return self._slots[padded]

    def _padded(self, batch_size: int) -> int:
        place = bisect.bisect_left(self._graphs, batch_size) if self._graphs else 0
        return self._graphs[place] if self._graphs and place < len(self._graphs) else batch_size

    def _candidates(self, batch_size: int) -> Sequence[int]:
        known = sorted(self._steps)
        return self._steps[known[max(0, bisect.bisect_right(known, batch_size) - 1)]]


class _Slot:
    def __init__(self, policy: Policy, candidates: Sequence[int]) -> None:
        self._session: Session = policy.session(max_new_tokens=None, hidden={"target", "draft"})
        self._candidates = candidates
        self._session.start()
        self.steps = self._decide()

    def _decide(self) -> int:
        gamma = self._session.begin_step()
        return min(self._candidates, key=lambda steps: (abs(steps - gamma), steps))

    def end(self, accepted: Sequence[int]) -> int | None:
        before = self.steps
        # With overlap the counts may be those of another number of steps than the present one.
        mean = min(round(sum(accepted) / len(accepted)), before)
        self._session.end_step(mean, num_drafted=before)
        self.steps = self._decide()
        return self.steps if self.steps != before else None


def _read_steps(path: str) -> dict[int, list[int]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        steps = {int(key): sorted(set(value["candidate_steps"])) for key, value in content.items() if key.isdigit()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f'{path}: expected {{"1": {{"candidate_steps": [0, 3]}}}} or such, got {error!r}.') from error
    whole = all(values and all(type(v) is int and v >= 0 for v in values) for values in steps.values())
    if not steps or not whole:
        raise ConfigError(f"{path}: expected lists of whole numbers from 0 under batch sizes, got {steps}.")
    return steps
