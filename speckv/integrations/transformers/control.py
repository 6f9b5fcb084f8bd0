# SPDX-License-Identifier: Apache-2.0
"""transformers' assisted generation, with a policy that says how many tokens to draft.

    with control(target, draft, "mine.speckv"):
        target.generate(**inputs, assistant_model=draft)

Only what proposes is ours: a `CandidateGenerator`, transformers' own public seam, handed out by the target's
`_get_candidate_generator`, which is replaced on this one object while the block runs. Verification, stopping, streaming
and the text remain transformers'. Its stock generator calls the draft's `generate` at every step, and cannot draft
nothing; this one passes through the draft's `forward`, and can.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from speckv.errors import ConfigError
from speckv.integrations.transformers.models import as_is, require_pair, vocabulary
from speckv.models.signals import signals
from speckv.runtime.exported import Policy
from speckv.runtime.session import Session

HOOK = "_get_candidate_generator"
_NEEDS = {"generation_config", "input_ids", "logits_processor", "assistant_model"}
"""Arguments of the hook that we rely on; transformers 5.23 and 5.24 have them."""


@contextmanager
def control(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    policy: Policy | Path | str,
    *,
    compression: str | None = None,
    cost_ratio: float | None = None,
) -> Iterator[Policy]:
    """Lets a policy choose how many tokens `target.generate(..., assistant_model=draft)` drafts at each step.

    Greedy text and the distribution of sampled text are the target's own. The target's first pass reads the prompt
    alone; drafting begins behind its token.

    Args:
        target: Whose text is kept.
        draft: What proposes; it has the target's vocabulary.
        policy: As loaded, or the folder of an exported one.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; what the policy was trained with by default.

    Yields:
        The policy, whose `warnings` tell whether it was ever distrusted.

    Raises:
        ConfigError: if the models cannot work together, or the target is under control already, or this version of
            transformers lacks what is needed. Inside the block, from `generate`: for settings that cannot be served.
        CheckpointError: if the folder's policy cannot be used.
    """
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    require_pair(target, draft)
    if HOOK in vars(target):
        raise ConfigError("Expected a target that no policy controls yet, got one inside another `control` block.")
    hook: Any = getattr(target, HOOK, None)
    signature = inspect.signature(hook) if callable(hook) else inspect.Signature()
    missing = _NEEDS - set(signature.parameters)
    if missing:
        raise ConfigError(
            f"Expected transformers from 5.23, below 6: this version's {HOOK} lacks {sorted(missing)}. "
            "Use custom_generate=speckv.integrations.transformers.custom_generate."
        )
    policy.session(max_new_tokens=1, compression=compression)  # a wrong word is refused here, not inside `generate`

    def candidates(*args: Any, **kwargs: Any) -> CandidateGenerator:
        bound = signature.bind(*args, **kwargs).arguments
        _require_servable(bound, draft)
        return PolicyCandidates(
            draft,
            policy,
            generation_config=bound["generation_config"],
            logits_processor=bound["logits_processor"],
            session={"compression": compression, "cost_ratio": cost_ratio, "vocab_size": vocabulary(target)},
        )

    setattr(target, HOOK, candidates)
    try:
        yield policy
    finally:
        delattr(target, HOOK)


class PolicyCandidates(CandidateGenerator):
    """Drafts as many tokens as a policy says, for one request.

    Args:
        draft: Proposes.
        policy: Decides.
        generation_config: Of the request, as `generate` prepared it.
        logits_processor: Of the target; the draft's scores go through it too.
        session: Options of the policy's session, its budget apart.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        policy: Policy,
        *,
        generation_config: Any,
        logits_processor: Any,
        session: dict[str, Any],
    ) -> None:
        self._draft, self._policy, self._options = DraftSequence(draft), policy, session
        self._max_length = int(generation_config.max_length)
        self._do_sample = bool(generation_config.do_sample)
        eos = getattr(generation_config, "_eos_token_tensor", None)
        self._eos = frozenset() if eos is None else frozenset(eos.flatten().tolist())
        self._processors = logits_processor
        self._session: Session | None = None
        self._shown: list[tuple[float, float, float]] = []

    def get_candidates(  # type: ignore[override]
        self, input_ids: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Drafts behind a text.

        Args:
            input_ids: Shape [1, tokens].

        Returns:
            The text with the draft behind it, of shape [1, tokens + drafted], and the processed scores that each
            drafted token was chosen from, of shape [1, drafted, vocabulary]; None where nothing was drafted.
        """
        self._shown.clear()
        if self._session is None:
            return input_ids, None  # the target reads the prompt first
        gamma = min(self._session.begin_step(), self._draft.room(input_ids.shape[1]))
        text, chosen_from = input_ids.to(self._draft.device), []
        more = gamma > 0
        while more:
            logits = self._draft.after(text)
            scores = self._processors(text, logits.float())
            token = scores.softmax(-1).multinomial(1) if self._do_sample else scores.argmax(-1, keepdim=True)
            text = torch.cat([text, token.to(text.dtype)], dim=1)
            chosen_from.append(scores)
            entropy, confidence, margin = signals(logits)[0].tolist()
            self._shown.append((entropy, confidence, margin))
            more = self._session.go_on(entropy, confidence, margin) and len(chosen_from) < gamma
            more = more and int(token) not in self._eos
        if not chosen_from:
            return input_ids, None
        return text.to(input_ids.device), torch.stack(chosen_from, dim=1).to(input_ids.device)

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Tells the policy what a step came to.

        Args:
            input_ids: Shape [1, tokens]; the text after the step.
            scores: Shape [1, drafted + 1, vocabulary]; the target's processed scores.
            num_matches: Drafted tokens that were kept.
        """
        kept = int(num_matches)
        entropy, confidence, _ = signals(scores[0, kept : kept + 1])[0].tolist()
        if self._session is None:
            budget = self._max_length - input_ids.shape[1] + 1
            self._session = self._policy.session(max_new_tokens=budget, **self._options)
            self._session.start(entropy, confidence)
        else:
            self._session.end_step(kept, entropy, confidence, num_drafted=len(self._shown))


class DraftSequence:
    """What a draft has read, with its cache; fed with the whole text each time, it reads what is new.

    Args:
        draft: The model.
    """

    def __init__(self, draft: PreTrainedModel) -> None:
        self._model, self.device = as_is(draft), draft.device
        self._sequence = self._model.sequence()
        self._read: Tensor | None = None

    def room(self, length: int) -> int:
        """Tokens that can be drafted behind a text of that length before the draft's context is full."""
        return max(0, self._model.context_limit - length)

    def after(self, text: Tensor) -> Tensor:
        """Scores of what may follow.

        Args:
            text: Shape [1, tokens].

        Returns:
            Shape [1, vocabulary].
        """
        same = self._common(text)
        self._sequence.truncate(same)
        logits = self._sequence.extend(text[0, same:], num_logits=1)
        self._read = text
        return logits

    def _common(self, text: Tensor) -> int:
        """Tokens that the cache may keep: what was read and is still there, the newest one always read anew."""
        if self._read is None:
            return 0
        shorter = min(self._read.shape[1], text.shape[1] - 1)
        differs = (self._read[0, :shorter] != text[0, :shorter]).nonzero()
        return int(differs[0]) if len(differs) else shorter


def _require_servable(bound: dict[str, Any], draft: PreTrainedModel) -> None:
    """Passes if a call of `generate` can be served; transformers itself refuses batches, beams and static caches."""
    config = bound["generation_config"]
    if bound.get("assistant_model") is not draft:
        raise ConfigError(
            "Expected assistant_model to be the draft that `control` was given, got another. "
            "Give `control` the model that drafts, and leave prompt lookup and early exit off."
        )
    if bound.get("target_tokenizer") is not None or bound.get("assistant_tokenizer") is not None:
        raise ConfigError(
            "Expected one tokenizer for both models, got two. Leave tokenizer and assistant_tokenizer out."
        )
    for name in ("assistant_ensemble_weight", "assistant_early_exit", "prompt_lookup_num_tokens"):
        if getattr(config, name, None) is not None:
            raise ConfigError(f"Expected generate without {name}, got {getattr(config, name)!r}. Leave it out.")
