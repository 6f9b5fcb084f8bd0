# SPDX-License-Identifier: Apache-2.0
"""A lookup in the text so far as a proposer of vLLM, with a gamma for each request.

    speculative_config = {
        "method": "custom_class",
        "model": "speckv.integrations.vllm.SpecKVNgramProposer",
        "num_speculative_tokens": 8,
    }

Each token is the one that most often followed the longest suffix of the text; signals are computed from its counts
(docs/drafters.md). vLLM is not imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.integrations.vllm.sessions import EnvironmentSettings, require_turns
from speckv.ngrams import NgramIndex
from speckv.runtime import Session

LONGEST, SHORTEST = 4, 2
"""Lengths of the looked-up suffixes, in tokens."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    text: NDArray[np.integer[Any]]
    index: NgramIndex
    session: Session
    num_drafted: int = 0


class SpecKVNgramProposer:
    """The proposer of vLLM's `method="custom_class"`, constructed by vLLM.

    vLLM passes neither names nor token budgets. A request is recognised by its text, and the policy gets a typical
    budget.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._settings = settings = EnvironmentSettings.read()
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._max_length = int(vllm_config.model_config.max_model_len)
        self._vocab_size = int(vllm_config.model_config.get_vocab_size())
        self._max_requests = int(vllm_config.scheduler_config.max_num_seqs)
        require_turns(settings.policy, self._max_requests)
        self._requests: list[_Request] = []

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing; vLLM calls it on CPUs."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.integer[Any]],
        token_ids_cpu: NDArray[np.integer[Any]],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """Drafts for each request of a pass.

        Args:
            sampled_token_ids: Tokens that the pass emitted, by row; empty while a prompt is being read.
            num_tokens_no_spec: Shape [rows or more]; tokens of each text with the emitted ones.
            token_ids_cpu: Shape [rows or more, longest text]; the texts.
            slot_mappings: Ignored.
        """
        del slot_mappings
        known: list[_Request | None] = [*self._requests]
        seen, drafts = list[_Request](), list[list[int]]()
        for row, sampled in enumerate(sampled_token_ids):
            text = token_ids_cpu[row, : int(num_tokens_no_spec[row])]
            if not sampled or len(text) >= self._max_length:
                drafts.append([])
                continue
            request = _take(known, text, len(sampled), row)
            if request is None:
                request = self._open(text)
            else:
                request.index.extend(text[len(request.text) :].tolist())
                request.text = text.copy()
                request.session.end_step(
                    min(len(sampled) - 1, request.num_drafted),
                    num_drafted=request.num_drafted,
                    num_emitted=len(sampled),
                )
            seen.append(request)
            drafts.append(self._draft(request))
        # A request that was not in this pass may return.
        unseen = [request for request in known if request is not None]
        self._requests = [*seen, *unseen[: self._max_requests]]
        return drafts

    def _open(self, text: NDArray[Any]) -> _Request:
        index = NgramIndex(LONGEST, SHORTEST)
        index.extend(text.tolist())
        session = self._settings.policy.session(
            # The prompt's pass has emitted one token.
            max_new_tokens=self._max_length - len(text) + 1,
            compression=self._settings.compression,
            vocab_size=self._vocab_size,
            hidden={"target", "budget"},
        )
        session.start()
        return _Request(text=text.copy(), index=index, session=session)

    def _draft(self, request: _Request) -> list[int]:
        index, length = request.index, len(request.text)
        gamma = min(request.session.begin_step(), self._most)
        draft: list[int] = []
        while len(draft) < gamma and (guess := index.guess()) is not None:
            draft.append(guess.token)
            index.extend([guess.token])
            if not request.session.go_on(guess.entropy, guess.confidence, guess.margin):
                break
        index.truncate(length)
        request.num_drafted = len(draft)
        return draft


def _take(known: list[_Request | None], text: NDArray[Any], num_sampled: int, row: int) -> _Request | None:
    length = len(text) - num_sampled
    for place in (row, *range(len(known))):
        request: _Request | None = known[place] if place < len(known) else None
        if request is not None and len(request.text) == length and np.array_equal(request.text, text[:length]):
            known[place] = None
            return request
    return None
