# SPDX-License-Identifier: Apache-2.0
"""transformers' assisted generation, with a policy that chooses how many tokens to draft.

    with control(target, draft, "mine.speckv"):
        target.generate(**inputs, assistant_model=draft)

Three methods of the target are replaced inside the block; loop, verification, sampling and streaming stay
transformers' own. A block belongs to the context (`contextvars`) of its thread or asyncio task. A call of `generate`
in a context without one, such as a thread that streams, uses the only open block, or none if several are open.
"""

import inspect
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from speckv.errors import ConfigError
from speckv.integrations.transformers.candidates import ExactCriteria, PolicyCandidates, custom_criteria, exclusive
from speckv.integrations.transformers.models import (
    as_draft,
    require_pair,
    require_plain_adapters,
    shipped_with,
    vocabulary,
    warn_if_trained_elsewhere,
)
from speckv.models.parts import unwrapped
from speckv.runtime.policy import Policy

CANDIDATES, CRITERIA, MODE = "_get_candidate_generator", "_get_stopping_criteria", "_validate_generation_mode"
NEEDS = {
    CANDIDATES: {"generation_config", "input_ids", "logits_processor", "assistant_model"},
    CRITERIA: {"generation_config", "stopping_criteria"},
    MODE: {"generation_mode_kwargs"},
}
"""Replaced methods and their used parameters, as in transformers 5.23 and 5.24."""
_HOOKS = "_speckv_hooks"
_ENTERED: ContextVar[tuple[object, ...]] = ContextVar("speckv_control", default=())


class Block:
    """One `control` block; its models have no wrappers, and `session` holds options of sessions."""

    def __init__(
        self, target: PreTrainedModel, draft: PreTrainedModel, policy: Policy, session: dict[str, Any]
    ) -> None:
        self.target, self._draft, self._policy, self._session = target, draft, policy, session
        self._calls = self._assisted = 0
        self.elsewhere = 0  # calls of `generate` in contexts without a block, while this one was open
        self._latest = threading.local()  # config and criteria of the newest call in a thread

    def is_here(self) -> bool:
        """Whether the calling context is inside."""
        return any(block is self for block in _ENTERED.get())

    def drafts_with(self, assistant: Any) -> bool:
        """Whether a model, perhaps wrapped, is the block's draft."""
        return assistant is not None and unwrapped(assistant) is self._draft

    def candidates(self, arguments: dict[str, Any]) -> PolicyCandidates:
        """The candidate generator of a call."""
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
        """The stopping criteria of a call, from transformers' own."""
        self._calls += 1
        config = arguments["generation_config"]
        criteria = ExactCriteria(found) if custom_criteria(found, config) else found
        self._latest.config, self._latest.criteria = config, criteria
        return criteria

    def mode_arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leaves out a draft whose vocabulary differs by padding, which would count as another tokenizer."""
        padded = vocabulary(self.target) != vocabulary(self._draft) and "assistant_tokenizer" not in given
        if padded and self.drafts_with(given.get("assistant_model")):
            return {name: value for name, value in given.items() if name != "assistant_model"}
        return given

    def why_unused(self) -> str | None:
        """Why no call of `generate` used the policy, if so."""
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
        # PEFT sets its own method here while `generate` of a model with virtual tokens runs.
        preparing = vars(self.target).get("prepare_inputs_for_generation")
        require_plain_adapters(getattr(preparing, "__self__", self.target))


class Hooks:
    """The replaced methods of one target, stored on it so that copies of this module in exported folders share them."""

    def __init__(self, target: PreTrainedModel) -> None:
        self._target = target
        self._replaced: dict[str, Any] = {}
        self._blocks: list[Block] = []
        self._lock = threading.Lock()
        self._removed = False

    def __reduce__(self) -> "tuple[type[Hooks], tuple[PreTrainedModel]]":
        """A copy of the target made inside a block is not controlled."""
        return Hooks, (self._target,)

    def enter(self, block: Block) -> bool:
        """Adds a block; False if another thread has removed the hooks. ConfigError inside another block."""
        with self._lock:
            if self._removed:
                return False
            try:
                if self._here() is not None:
                    raise ConfigError(
                        "Expected a target that no policy controls yet, got one inside another `control` block."
                    )
                self._require_known()
            except ConfigError:
                self._remove_if_unused()
                raise
            if not self._blocks:
                self._install()
            self._blocks.append(block)
            return True

    def _install(self) -> None:
        methods = {CANDIDATES: self.candidates, CRITERIA: self.criteria, MODE: self.mode}
        known = {name: vars(self._target).get(name) for name in methods}
        # On a copy of a target that was made inside a block, these methods are there already.
        self._replaced = {n: m for n, m in known.items() if m is not None and getattr(m, "__self__", None) is not self}
        vars(self._target).update(methods)

    def leave(self, block: Block) -> None:
        """Removes a block, and with the last one the hooks."""
        with self._lock:
            self._blocks.remove(block)
            self._remove_if_unused()

    def candidates(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces transformers' method."""
        block, arguments = self._block(), self._arguments(CANDIDATES, args, kwargs)
        if block is None or not (block.is_here() or block.drafts_with(arguments.get("assistant_model"))):
            return self._own(CANDIDATES)(*args, **kwargs)
        return block.candidates(arguments)

    def criteria(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces transformers' method."""
        block, found = self._block(), self._own(CRITERIA)(*args, **kwargs)
        if block is None:
            for other in tuple(self._blocks):
                other.elsewhere += 1
            return found
        return block.criteria(self._arguments(CRITERIA, args, kwargs), found)

    def mode(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces transformers' method."""
        block = self._block()
        if block is None:
            return self._own(MODE)(*args, **kwargs)
        arguments = self._arguments(MODE, args, kwargs)
        arguments["generation_mode_kwargs"] = block.mode_arguments(arguments["generation_mode_kwargs"])
        return self._own(MODE)(**arguments)

    def _here(self) -> Block | None:
        return next((block for block in tuple(self._blocks) if block.is_here()), None)

    def _block(self) -> Block | None:
        blocks = tuple(self._blocks)
        return self._here() or (blocks[0] if len(blocks) == 1 else None)

    def _own(self, name: str) -> Any:
        method = getattr(type(self._target), name, None)
        return self._replaced.get(name) or (method and method.__get__(self._target))

    def _arguments(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return inspect.signature(self._own(name)).bind(*args, **kwargs).arguments

    def _require_known(self) -> None:
        for name, needed in NEEDS.items():
            method = self._own(name)
            found = inspect.signature(method).parameters if callable(method) else {}
            if missing := needed - set(found):
                raise ConfigError(
                    f"Expected transformers from 5.23, below 6: this version's {name} lacks {sorted(missing)}. "
                    "Use custom_generate=speckv.integrations.transformers.custom_generate."
                )

    def _remove_if_unused(self) -> None:
        if self._blocks:
            return
        for name in NEEDS:
            if getattr(vars(self._target).get(name), "__self__", None) is self:
                del vars(self._target)[name]
        vars(self._target).update(self._replaced)
        vars(self._target).pop(_HOOKS, None)
        self._removed = True


@contextmanager
def control(
    target: Any,
    draft: Any,
    policy: Policy | Path | str | None = None,
    *,
    compression: str | None = None,
    cost_ratio: float | None = None,
) -> Iterator[Policy]:
    """Lets a policy choose how many tokens `target.generate(..., assistant_model=draft)` drafts at each step.

    Greedy text and the distribution of sampled text are those of plain `generate`, with any logits processors and
    stopping criteria whose state can be deep-copied. Several threads may decode with one target, each inside its own
    `control` block.

    Args:
        target: A transformers model, or one inside a wrapper of PEFT, torch.compile or distributed training.
        draft: Likewise, with the target's tokenizer.
        policy: A loaded policy, or the folder of an exported one; its `warnings` count uses of its fallback. By default
            the shipped one, which learns the times of steps and remembers those of each pair.
        compression: Of the target; the policy's first by default.
        cost_ratio: One draft pass over one target pass; by default that of the policy's training.

    Warns:
        UserWarning: at the end of a block in which no call of `generate` used the policy.

    Raises:
        ConfigError: if the models do not fit, the target is controlled already, or settings or transformers' version
            are not supported; also from `generate`.
        ModelError: for models whose cache cannot be rolled back.
        CheckpointError: if the folder's policy cannot be used.
    """
    target, draft = _inner(target), _inner(draft)
    require_pair(target, draft)
    policy = shipped_with(target, draft) if policy is None else policy
    policy = policy if isinstance(policy, Policy) else Policy.load(policy)
    warn_if_trained_elsewhere(policy, target, draft, compression)
    with exclusive(policy):
        policy.session(max_new_tokens=1, compression=compression)  # refuses a wrong compression before `generate`
    session = {"compression": compression, "cost_ratio": cost_ratio, "vocab_size": vocabulary(target)}
    block = Block(target, draft, policy, session)
    hooks = _enter(target, block)
    _ENTERED.set((*_ENTERED.get(), block))
    try:
        yield policy
    finally:
        _ENTERED.set(tuple(other for other in _ENTERED.get() if other is not block))
        hooks.leave(block)
    if (unused := block.why_unused()) is not None:
        warnings.warn(unused, UserWarning, stacklevel=3)


def _enter(target: PreTrainedModel, block: Block) -> Hooks:
    while True:
        hooks: Hooks = vars(target).setdefault(_HOOKS, Hooks(target))  # atomic: two threads get the same object
        if hooks.enter(block):
            return hooks


def _inner(model: Any) -> PreTrainedModel:
    inner = unwrapped(model)
    if not isinstance(inner, PreTrainedModel):
        raise ConfigError(
            "Expected a transformers model, or one wrapped by PEFT, torch.compile or distributed training, "
            f"got {type(model).__name__}. Give the transformers model."
        )
    for wrapper in (model, getattr(model, "module", model)):
        require_plain_adapters(wrapper)
    return inner
