# SPDX-License-Identifier: Apache-2.0
"""The callable that llama-cpp-python asks for a draft before each verification."""

import logging
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speckv.errors import ConfigError
from speckv.integrations.llama_cpp.library import Llama, TokenIds, base_class, library
from speckv.integrations.llama_cpp.proposers import LlamaDraft, LookupDraft, Proposer
from speckv.integrations.llama_cpp.target import Target
from speckv.runtime import Policy, Session
from speckv.runtime.constant import AcceptanceTable, ConstantGamma, ConstantPerCompression

logger = logging.getLogger(__name__)
_UNKNOWN = (math.nan, math.nan)
_BLIND = (ConstantGamma, ConstantPerCompression, AcceptanceTable)
"""Controllers that look at no signal, so that none need be computed."""


@dataclass(slots=True)
class Totals:
    """What drafts came to, all requests together.

    A request's last step is in `steps` and `drafted` alone: nobody tells what became of it.

    Attributes:
        requests: Begun.
        steps: Verifications asked for.
        drafted: Tokens proposed.
        accepted: Of them kept, as far as known.
    """

    requests: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0


class PolicyDrafting:
    """Drafts as a policy says, for one target and one text at a time; made by `draft_model`.

    llama-cpp-python tells a drafter the text so far and nothing else. How much of the last draft was kept is how far
    the text has grown; a text that is no such continuation is another request, and begins another session, so that
    nothing that was seen in one request is taken for the past of the next. Two requests look like one only where the
    second goes on exactly where the first stopped, with a token that the last draft had wrong or did not reach; what
    is remembered is then true of the text. `new_request` parts those, too.

    Args:
        policy: Decides.
        proposer: Proposes.
        max_new_tokens: Token budget of a request, which the policy sees and no draft exceeds; None for what the
            contexts hold. May be set between requests.
        compression: Of the target, as the policy knows it; its first by default.
        cost_ratio: One draft pass over one target pass; by default what the policy was trained with.
        temperature: Of the target's sampling, above 0; 1 for greedy decoding.
        signals: Whether to compute entropy, confidence and margin; by default where the policy looks at them.
        exact: Let no draft change the text: `attach` tries out how many tokens the target reads at once exactly as one
            by one (`exactness`), and drafts are cut to that. Otherwise the text may differ at near-ties, as with
            llama.cpp's own speculative decoding.

    Attributes:
        policy: Its `warnings` count fallbacks and failures of the draft.
        totals: What drafts came to.
        never_drafts: Whether the policy is plain decoding here, so that a target does best without this drafter.

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
        self.never_drafts = policy.never_drafts(compression)
        self._target: Target | None = None
        self._session: Session | None = None
        self._text: TokenIds = np.empty(0, np.intc)
        self._draft: TokenIds = np.empty(0, np.intc)
        policy.session(max_new_tokens=max_new_tokens or 1, compression=compression, cost_ratio=cost_ratio)

    def target_options(self) -> dict[str, Any]:
        """What the target is to be made with, besides a user's own: `Llama(path, ..., **drafter.target_options())`.

        Returns:
            Nothing for a policy that never drafts: a target with a drafter keeps the logits of the whole prompt, which
            makes reading it slower. Otherwise this drafter, and `logits_all`.
        """
        return {} if self.never_drafts else {"draft_model": self, "logits_all": True}

    def attach(self, target: Llama) -> None:
        """Makes a target's signals visible to the policy, and checks the target.

        A target that was made without a drafter, because the policy never drafts, is left alone. With `exact`, the
        target's cache is emptied; that takes as long as reading some 600 tokens.

        Args:
            target: Made with this drafter as `draft_model`.

        Raises:
            ConfigError: if it was made with another drafter, is the draft itself, has settings that cannot be, or, with
                `exact`, reads no two tokens at once as it reads them one by one.
            ModelError: if the draft speaks other tokens.
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
        """Takes the next call for the first of a request, whatever its text looks like."""
        self._session = None

    def __call__(self, input_ids: TokenIds, /, **kwargs: Any) -> TokenIds:
        """Proposes tokens behind a text; none is plain decoding.

        Args:
            input_ids: Prompt and output, the newest token included. The buffer is the target's and is copied.
            **kwargs: Ignored; llama-cpp-python 0.3 gives none.
        """
        del kwargs
        text = np.array(input_ids, np.intc)
        session, accepted = self._session, self._accepted(text)
        if session is None or accepted is None:
            session = self._begin(len(text))
            session.start(*self._target_signals(len(text)))
        else:
            self.totals.accepted += accepted
            session.end_step(accepted, *self._target_signals(len(text)))
        draft = self._propose(session, text)
        self.totals.steps += 1
        self.totals.drafted += len(draft)
        self._session, self._text, self._draft = session, text, draft
        return draft

    def _accepted(self, text: TokenIds) -> int | None:
        """How much of the last draft a text has kept; None if it is no continuation of the last text."""
        length, drafted = len(self._text), len(self._draft)
        accepted = len(text) - length - 1
        if self._session is None or not 0 <= accepted <= drafted or accepted + 1 >= self._session.tokens_left:
            return None  # with its budget used up, a request would not have asked again
        kept, newest = text[length:-1], text[-1]
        if not (np.array_equal(text[:length], self._text) and np.array_equal(kept, self._draft[:accepted])):
            return None
        if accepted < drafted and newest == self._draft[accepted]:
            return None  # verification would have gone on
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
            except (RuntimeError, ValueError) as error:  # whatever a draft does, the text goes on
                self._count(f"the draft failed ({type(error).__name__}: {error})")
        return np.array(draft, np.intc)

    def _room(self, length: int) -> int:
        room, target = self.proposer.room(length), self._target
        if target is None:
            return room
        # The token behind a wholly accepted draft must find a place, too.
        return max(min(room, target.widest - 1, target.context - length - 1), 0)

    def _count(self, reason: str) -> None:
        if not self.policy.warnings[reason]:
            logger.warning("No draft: %s. Further ones are counted, not shown.", reason)
        self.policy.warnings[reason] += 1


def draft_model(policy: Policy | Path | str, draft: Llama | LookupDraft, **options: Any) -> PolicyDrafting:
    """Makes what goes into `llama_cpp.Llama(draft_model=...)`: a `LlamaDraftModel` that drafts as a policy says.

    Args:
        policy: As loaded, or the folder of an exported one.
        draft: A second `Llama`, or a lookup.
        **options: See `PolicyDrafting`.

    Raises:
        ConfigError: if llama-cpp-python is not installed, the draft cannot forget tokens, or a setting is out of range.
        CheckpointError: if the folder's policy cannot be used.
    """
    made = _subclass(base_class())
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    proposer = draft if isinstance(draft, LookupDraft) else LlamaDraft(library(), draft)
    looked_up = str(policy.trained_on.get("draft", "")).startswith("prompt-lookup")
    if "draft" in policy.trained_on and looked_up != isinstance(draft, LookupDraft):
        logger.warning(
            "Policy %r was trained on the draft %s and now decides on %s, whose signals mean something else.",
            policy.name,
            policy.trained_on["draft"],
            proposer.name,
        )
    return made(policy, proposer, **options)


@cache
def _subclass(base: type) -> type[PolicyDrafting]:
    # Made here, because the base can only be imported where llama-cpp-python is installed.
    made: type[PolicyDrafting] = type(base)("PolicyDraftModel", (PolicyDrafting, base), {"__doc__": base.__doc__})
    return made
