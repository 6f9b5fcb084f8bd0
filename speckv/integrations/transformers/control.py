# SPDX-License-Identifier: Apache-2.0
"""transformers' assisted generation, with a policy that chooses how many tokens to draft.

    with control(target, draft, "mine.speckv"):
        target.generate(**inputs, assistant_model=draft)

The loop, verification, sampling and streaming are transformers' own. Three methods of the target are replaced while
the block runs (`speckv.integrations.transformers.hooks`). transformers' candidate generator calls the draft's
`generate` at every step and cannot draft nothing; this one calls the draft's `forward`, and can.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from speckv.errors import ConfigError
from speckv.integrations.transformers.candidates import PolicyCandidates, exclusive
from speckv.integrations.transformers.criteria import ExactCriteria, custom_criteria
from speckv.integrations.transformers.hooks import Block, hooked
from speckv.integrations.transformers.models import (
    as_draft,
    require_pair,
    require_plain_adapters,
    vocabulary,
)
from speckv.models.parts import unwrapped
from speckv.runtime.policy import Policy


@contextmanager
def control(
    target: Any,
    draft: Any,
    policy: Policy | Path | str,
    *,
    compression: str | None = None,
    cost_ratio: float | None = None,
) -> Iterator[Policy]:
    """Lets a policy choose how many tokens `target.generate(..., assistant_model=draft)` drafts at each step.

    Greedy text and the distribution of sampled text are those of plain `generate`, with any logits processors and
    stopping criteria whose state can be deep-copied. The target's first pass reads the prompt alone; drafting begins
    behind its token.

    Several threads may decode with one target, each inside a `control` block of its own. While one block is open it
    holds for threads without a block too, such as one that is started to stream its text; while several are open,
    `generate` in such a thread is transformers' own.

    Args:
        target: A transformers model, or one inside a wrapper of PEFT, torch.compile or distributed training.
        draft: Likewise; it has the target's tokenizer.
        policy: As loaded, or the folder of an exported one.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; what the policy was trained with by default.

    Yields:
        The policy, whose `warnings` count how often its fallback was used.

    Warns:
        UserWarning: at the end of a block in which no call of `generate` used the policy.

    Raises:
        ConfigError: if the models cannot work together, or the target is under control already, or this version of
            transformers lacks what is needed. Inside the block, from `generate`: for settings that cannot be served.
        ModelError: for models whose cache cannot forget rejected tokens.
        CheckpointError: if the folder's policy cannot be used.
    """
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    target, draft = _inner(target), _inner(draft)
    require_pair(target, draft)
    with exclusive(policy):
        policy.session(max_new_tokens=1, compression=compression)  # a wrong word is refused here, not inside `generate`
    session = {"compression": compression, "cost_ratio": cost_ratio, "vocab_size": vocabulary(target)}
    block = _Control(target, draft, policy, session)
    with hooked(target, block):
        yield policy
    if (unused := block.why_unused()) is not None:
        warnings.warn(unused, UserWarning, stacklevel=3)


def _inner(model: Any) -> PreTrainedModel:
    """The model whose `generate` runs in the end; adapters such as LoRA are part of its layers.

    Raises:
        ConfigError: if there is none, or an adapter cannot be served.
    """
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        raise ConfigError(
            "Expected a transformers model, or one wrapped by PEFT, torch.compile or distributed training, "
            f"got {type(model).__name__}. Give the transformers model."
        )
    for wrapper in (model, getattr(model, "module", model)):
        require_plain_adapters(wrapper)
    return inner


class _Control(Block):
    """One `control` block.

    Args:
        target: Without wrappers.
        draft: Without wrappers.
        policy: Chooses.
        session: Options of its sessions, without their budgets.
    """

    def __init__(
        self, target: PreTrainedModel, draft: PreTrainedModel, policy: Policy, session: dict[str, Any]
    ) -> None:
        self.target, self._draft, self._policy, self._session = target, draft, policy, session
        self._calls = self._assisted = 0
        self._latest = threading.local()

    def candidates(self, arguments: dict[str, Any]) -> PolicyCandidates:
        """Returns the candidate generator of a call."""
        self._assisted += 1
        config = arguments["generation_config"]
        self._require_servable(arguments)
        known = getattr(self._latest, "config", None) is config
        return PolicyCandidates(
            as_draft(self._draft, self.target),
            self._policy,
            generation_config=config,
            logits_processor=arguments["logits_processor"],
            criteria=self._latest.criteria if known else (),
            prompt_len=arguments["input_ids"].shape[1],
            session=self._session,
        )

    def criteria(self, arguments: dict[str, Any], found: Any) -> Any:
        """Returns criteria that are exact in blocks, where transformers' own list is not."""
        self._calls += 1
        config = arguments["generation_config"]
        criteria = ExactCriteria(found) if custom_criteria(found, config) else found
        self._latest.config, self._latest.criteria = config, criteria
        return criteria

    def drafts_with(self, assistant: Any) -> bool:
        """Whether a model, perhaps wrapped, is the block's draft."""
        return assistant is not None and unwrapped(assistant) is self._draft

    def mode_arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the arguments without a draft whose vocabulary differs from the target's by padding.

        transformers takes any difference for two tokenizers.
        """
        padded = vocabulary(self.target) != vocabulary(self._draft) and "assistant_tokenizer" not in given
        if padded and self.drafts_with(given.get("assistant_model")):
            return {name: value for name, value in given.items() if name != "assistant_model"}
        return given

    def why_unused(self) -> str | None:
        """Why no call of `generate` used the policy; None where one did."""
        if self._assisted:
            return None
        if self._calls:
            return (
                f"control: {self._calls} calls of generate decoded without the draft, so the policy was not used. "
                "Pass assistant_model=draft, and leave num_beams at 1."
            )
        if self.elsewhere:
            return (
                "control: generate was called only in threads outside the open blocks, so the policy was not used. "
                "Enter control in the thread that calls generate, or run it there by contextvars.copy_context().run."
            )
        return "control: generate was not called on the target, so the policy was not used."

    def _require_servable(self, arguments: dict[str, Any]) -> None:
        """Passes if a call can be served; transformers itself refuses batches, beams and caches."""
        if not self.drafts_with(arguments.get("assistant_model")):
            raise ConfigError(
                "Expected assistant_model to be the draft that `control` was given, got another. "
                "Give `control` the model that drafts, and leave prompt lookup and early exit off."
            )
        if arguments.get("assistant_tokenizer") is not None:
            raise ConfigError("Expected one tokenizer for both models, got two. Leave assistant_tokenizer out.")
        config = arguments["generation_config"]
        for name in ("assistant_ensemble_weight", "assistant_early_exit", "prompt_lookup_num_tokens"):
            if getattr(config, name, None) is not None:
                raise ConfigError(f"Expected generate without {name}, got {getattr(config, name)!r}. Leave it out.")
        if config.output_attentions and self.target.config._attn_implementation != "eager":
            raise ConfigError(
                "Expected output_attentions with attn_implementation='eager', got "
                f"{self.target.config._attn_implementation!r}, which returns no attention weights. Load the target "
                "with eager attention, or leave output_attentions out."
            )
        # PEFT puts its own method here while `generate` of a model with virtual tokens runs.
        preparing = vars(self.target).get("prepare_inputs_for_generation")
        require_plain_adapters(getattr(preparing, "__self__", self.target))
