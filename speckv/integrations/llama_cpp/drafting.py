# SPDX-License-Identifier: Apache-2.0
"""The callable that llama-cpp-python calls for a draft before each verification."""

import importlib
import logging
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speckv.errors import ConfigError
from speckv.integrations.llama_cpp.library import Llama, Target, TokenIds, library
from speckv.integrations.llama_cpp.proposers import LlamaDraft, LookupDraft, Proposer
from speckv.runtime import Policy, Session
from speckv.runtime.constant import AcceptanceTable, ConstantGamma, ConstantPerCompression

logger = logging.getLogger(__name__)
_UNKNOWN = (math.nan, math.nan)
_BLIND = (ConstantGamma, ConstantPerCompression, AcceptanceTable)
"""Controllers that use no signals."""


@dataclass(slots=True)
class Totals:
    """Counts over all requests; the accepted tokens of a request's last step are not known."""

    requests: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class PolicyDrafting:
    """Drafts for one target and one text at a time; made by `draft_model`.

    llama-cpp-python passes the text only. A text that does not continue the last one begins a new request. A request
    that continues exactly where the last one stopped is not recognised; `new_request` separates the two.

    Args:
        policy: Its `warnings` count fallbacks and failures of the draft.
        max_new_tokens: Token budget of a request, an input of the policy and a bound of drafts; None for the room in
            the contexts. May be set between requests.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; by default that of the policy's training.
        temperature: Of the target's sampling, above 0; 1 for greedy decoding.
        signals: Whether to compute entropy, confidence and margin; by default if the policy uses them.
        exact: Limits drafts to the `exact_width` that `attach` measures. Otherwise the text may differ at near-ties, as
            with llama.cpp's own speculative decoding.

    Raises:
        ConfigError: for settings out of range.
    """

    def __init__(
        self,
        policy: Policy,
        proposer: Proposer,
        *,
        max_new_tokens: int | None = None,
        compression: str | None = None,
        cost_ratio: float | None = None,
        temperature: float = 1.0,
        signals: bool | None = None,
        exact: bool = False,
    ) -> None:
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"Expected max_new_tokens of at least 1, got {max_new_tokens}.")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"Expected a temperature above 0 (1 for greedy decoding), got {temperature}.")
        self.policy, self.proposer = policy, proposer
        self.max_new_tokens = max_new_tokens
        self.totals = Totals()
        self._of_session = {"compression": compression, "cost_ratio": cost_ratio}
        self._temperature, self._exact = temperature, exact
        self._signals = not isinstance(policy.controller, _BLIND) if signals is None else signals
        self.never_drafts = policy.never_drafts(compression)  # plain decoding, which is faster without this drafter
        self._target: Target | None = None
        self._session: Session | None = None
        self._text: TokenIds = np.empty(0, np.intc)
        self._draft: TokenIds = np.empty(0, np.intc)
        policy.session(max_new_tokens=max_new_tokens or 1, compression=compression, cost_ratio=cost_ratio)

    def target_options(self) -> dict[str, Any]:
        """Options of the target: `Llama(path, ..., **drafter.target_options())`."""
        # A target with a drafter keeps the logits of the whole prompt and reads it more slowly.
        return {} if self.never_drafts else {"draft_model": self, "logits_all": True}

    def attach(self, target: Llama) -> None:
        """Checks a target made with this drafter as `draft_model`, and reads its signals from then on.

        With `exact`, the target's cache is emptied, and the measurement takes as long as reading some 600 tokens.

        Raises:
            ConfigError: for another drafter, the draft itself, unsupported settings, or an exact width of 1.
            ModelError: if the draft has another vocabulary.
        """
        if self.never_drafts and target.draft_model is None:
            return
        if target.draft_model is not self:
            raise ConfigError("Expected a target made with draft_model=this drafter, got one with another or none.")
        lib = library()
        self.proposer.attach(lib, target)
        widest = self.policy.gamma_max + 1
        self._target = Target(lib, target, temperature=self._temperature, widest=widest, exact=self._exact)
        self.new_request()

    def new_request(self) -> None:
        """Makes the next call the first of a request."""
        self._session = None

    def __call__(self, input_ids: TokenIds, /, **kwargs: Any) -> TokenIds:
        """Proposes the next tokens, perhaps none; llama-cpp-python 0.3 passes no `kwargs`."""
        del kwargs
        text = np.array(input_ids, np.intc)  # a copy, because the target changes its buffer
        session, accepted = self._session, self._accepted(text)
        verify_s = None if self._target is None else self._target.take_seconds()
        if session is None or accepted is None:
            session = self._begin(len(text))
            session.start(*self._target_signals(len(text)))
        else:
            self.totals.accepted += accepted
            session.end_step(accepted, *self._target_signals(len(text)), verify_s=verify_s or None)
        draft = self._propose(session, text)
        self.totals.steps += 1
        self.totals.drafted += len(draft)
        self._session, self._text, self._draft = session, text, draft
        return draft

    def _accepted(self, text: TokenIds) -> int | None:
        """None if the text does not continue the last one."""
        length, drafted = len(self._text), len(self._draft)
        accepted = len(text) - length - 1
        if self._session is None or not 0 <= accepted <= drafted or accepted + 1 >= self._session.tokens_left:
            return None  # its budget is used up
        kept, newest = text[length:-1], text[-1]
        if not (np.array_equal(text[:length], self._text) and np.array_equal(kept, self._draft[:accepted])):
            return None
        if accepted < drafted and newest == self._draft[accepted]:
            return None  # verification would have accepted it
        return accepted

    def _begin(self, length: int) -> Session:
        hidden = set() if self._signals else {"target", "draft"}
        if self._target is None:
            hidden.add("target")
        if self.max_new_tokens is None:
            hidden.add("budget")
        room = None if self._target is None else max(self._target.context - length + 1, 1)
        self.totals.requests += 1
        return self.policy.session(
            max_new_tokens=self.max_new_tokens or room,
            vocab_size=None if self._target is None else self._target.vocab_size,
            hidden=hidden,
            **self._of_session,  # type: ignore[arg-type]
        )

    def _target_signals(self, length: int) -> tuple[float, float]:
        return self._target.signals(length) if self._target is not None and self._signals else _UNKNOWN

    def _propose(self, session: Session, text: TokenIds) -> TokenIds:
        gamma, draft = min(session.begin_step(), self._room(len(text))), list[int]()
        if gamma > 0:
            try:
                self.proposer.read(text)
                while proposed := self.proposer.propose(signals=self._signals):
                    draft.append(proposed.token)
                    if not session.go_on(*proposed.signals) or proposed.ends or len(draft) == gamma:
                        break
            except (RuntimeError, ValueError) as error:  # the target decodes without a draft
                reason = f"the draft failed ({type(error).__name__}: {error})"
                if not self.policy.warnings[reason]:
                    logger.warning("No draft: %s. Further ones are counted, not shown.", reason)
                self.policy.warnings[reason] += 1
        return np.array(draft, np.intc)

    def _room(self, length: int) -> int:
        room, target = self.proposer.room(length), self._target
        if target is None:
            return room
        # The token after a fully accepted draft needs a place, too.
        return max(min(room, target.widest - 1, target.context - length - 1), 0)


def draft_model(policy: Policy | Path | str, draft: Llama | LookupDraft, **options: Any) -> PolicyDrafting:
    """The argument of `llama_cpp.Llama(draft_model=...)`; options are those of `PolicyDrafting`.

    Raises:
        ConfigError: if llama-cpp-python is missing, the draft cannot be rolled back, or a setting is out of range.
        CheckpointError: if the folder's policy cannot be used.
    """
    lib = library()
    made = _subclass(importlib.import_module("llama_cpp.llama_speculative").LlamaDraftModel)
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    proposer = draft if isinstance(draft, LookupDraft) else LlamaDraft(lib, draft)
    looked_up = str(policy.trained_on.get("draft", "")).startswith("prompt-lookup")
    if "draft" in policy.trained_on and looked_up != isinstance(draft, LookupDraft):
        logger.warning(
            "Policy %r was trained on the draft %s and now decides on %s, whose signals have another meaning.",
            policy.name,
            policy.trained_on["draft"],
            proposer.name,
        )
    return made(policy, proposer, **options)


@cache
def _subclass(base: type) -> type[PolicyDrafting]:
    # The base can be imported only where llama-cpp-python is installed.
    made: type[PolicyDrafting] = type(base)("PolicyDraftModel", (PolicyDrafting, base), {"__doc__": base.__doc__})
    return made
