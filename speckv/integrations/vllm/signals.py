# SPDX-License-Identifier: Apache-2.0
"""The draft's signals, from two private methods of vLLM's `SpecDecodeBaseProposer`, wrapped if SPECKV_SIGNALS=1.

vLLM runs `install`, of the group `vllm.general_plugins`, in every process, perhaps more than once. The scheduler, in
the same process, receives three floats a token.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from speckv.integrations.vllm.sessions import SIGNALS

logger = logging.getLogger(__name__)

Rows = Sequence[Sequence[Sequence[float]]]
"""By request and drafted token: entropy (nats), confidence, margin."""

_MARK = "_speckv_signals"
_newest: list[Rows] = []
_installed: list[type] = []


def installed() -> bool:
    """Whether a proposer is wrapped in this process."""
    return bool(_installed)


def take() -> Rows:
    """The signals of the newest draft; empty if already taken."""
    return _newest.pop() if _newest else ()


def install() -> None:
    """Wraps vLLM's proposer in this process, once."""
    if os.environ.get(SIGNALS) != "1":
        return
    try:
        from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer
    except ImportError as error:
        logger.warning("No signals of the draft: this vLLM has no SpecDecodeBaseProposer (%s). 0.32 has.", error)
        return
    wrap(SpecDecodeBaseProposer)


def wrap(proposer: type) -> None:
    """Makes a proposer class store each draft's signals for `take`, once."""
    if proposer in _installed:
        return
    propose, sample = vars(proposer)["propose"], vars(proposer)["_sample_draft_tokens"]

    @functools.wraps(propose)
    def proposing(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self, _MARK, [])
        tokens = propose(self, *args, **kwargs)
        _publish(getattr(self, _MARK))
        return tokens

    @functools.wraps(sample)
    def sampling(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen: list[Any] = []
        with_scores(self.model, seen)
        try:
            drawn = sample(self, *args, **kwargs)
        finally:
            del self.model.compute_logits
        if seen:
            getattr(self, _MARK).append(signals_of(seen[-1]))
        return drawn

    # setattr, because the class is unknown to type checkers.
    setattr(proposer, "propose", proposing)  # noqa: B010
    setattr(proposer, "_sample_draft_tokens", sampling)  # noqa: B010
    _installed.append(proposer)


def with_scores(model: Any, seen: list[Any]) -> None:
    """Shadows `compute_logits` of one model, until the attribute is deleted, to store its scores."""
    compute: Callable[..., Any] = model.compute_logits

    def compute_and_store(*args: Any, **kwargs: Any) -> Any:
        scores = compute(*args, **kwargs)
        seen.append(scores)
        return scores

    # Bypasses nn.Module's `__setattr__`, so that nothing is registered.
    object.__setattr__(model, "compute_logits", compute_and_store)


def signals_of(scores: Any) -> Any:
    """Entropy, confidence and margin: [rows, 3], on the scores' device."""
    import torch

    logs = torch.log_softmax(scores.float(), dim=-1)
    probs = logs.exp()
    first, second = probs.topk(2, dim=-1).values.unbind(-1)
    # The logarithm of a probability of 0 is minus infinity, whose product with 0 would be NaN.
    entropy = -(probs * logs.clamp_min(-1e4)).sum(-1)
    return torch.stack([entropy, first, first - second], dim=-1)


def _publish(positions: Sequence[Any]) -> None:
    """Stores signals by request, given by position."""
    import torch

    _newest.clear()
    # Rows of a drafter that proposes all positions at once are not requests.
    if positions and len({len(position) for position in positions}) == 1:
        _newest.append(torch.stack(list(positions), dim=1).tolist())
