# SPDX-License-Identifier: Apache-2.0
"""The draft's signals, taken from vLLM's proposer, which shows none.

`install` wraps two private methods of `SpecDecodeBaseProposer` (draft models, EAGLE, MTP) and does nothing unless
SPECKV_SIGNALS=1. It is an entry point of the group `vllm.general_plugins`, which vLLM runs in every process, perhaps
more than once. Scores are read where they are computed; what crosses to the scheduler is three floats a token, and only
inside one process.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from speckv.integrations.vllm.settings import SIGNALS

logger = logging.getLogger(__name__)

Rows = Sequence[Sequence[Sequence[float]]]
"""Request -> drafted token -> entropy (nats), confidence, margin."""

_MARK = "_speckv_signals"
_shelf: list[Rows] = []
_installed: list[type] = []


def installed() -> bool:
    """Whether a proposer is wrapped in this process."""
    return bool(_installed)


def take() -> Rows:
    """The signals of the newest draft, once; nothing if there was none since."""
    return _shelf.pop() if _shelf else ()


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
    """Makes a proposer class leave the signals of each draft on the shelf; a second time changes nothing."""
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

    # setattr, because type checkers know nothing of the class.
    setattr(proposer, "propose", proposing)  # noqa: B010
    setattr(proposer, "_sample_draft_tokens", sampling)  # noqa: B010
    _installed.append(proposer)


def with_scores(model: Any, seen: list[Any]) -> None:
    """Shadows a model's `compute_logits` on this one object, until it is deleted from it, with one that remembers."""
    compute: Callable[..., Any] = model.compute_logits

    def remembering(*args: Any, **kwargs: Any) -> Any:
        scores = compute(*args, **kwargs)
        seen.append(scores)
        return scores

    # Past nn.Module's own `__setattr__`, so that nothing is registered.
    object.__setattr__(model, "compute_logits", remembering)


def signals_of(scores: Any) -> Any:
    """Entropy, confidence and margin of each row of scores; shape [rows, 3], on the scores' device."""
    import torch

    logs = torch.log_softmax(scores.float(), dim=-1)
    probs = logs.exp()
    first, second = probs.topk(2, dim=-1).values.unbind(-1)
    # An impossible token's logarithm is minus infinity, and zero times that is no number.
    entropy = -(probs * logs.clamp_min(-1e4)).sum(-1)
    return torch.stack([entropy, first, first - second], dim=-1)


def _publish(positions: Sequence[Any]) -> None:
    """Leaves the signals of a draft, position by position, as rows of requests."""
    import torch

    _shelf.clear()
    # A drafter that proposes all positions at once has other rows than requests.
    if positions and len({len(position) for position in positions}) == 1:
        _shelf.append(torch.stack(list(positions), dim=1).tolist())
