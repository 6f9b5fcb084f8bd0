# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers with a policy that chooses how many tokens to draft.

vLLM plans the number of tokens to draft by the number of requests (`num_speculative_tokens_per_batch_size`). The mix-in
replaces this choice by one gamma combined from the requests' sessions; outcomes arrive one decision late, or two where
passes overlap. Or it cuts drafts to each request's own gamma, which saves verification, but no drafting.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from speckv.errors import ConfigError
from speckv.integrations.vllm import signals
from speckv.integrations.vllm.sessions import (
    PER_REQUEST,
    SIGNALS,
    Budget,
    EnvironmentSettings,
    RequestSessions,
    require_turns,
)

if TYPE_CHECKING:

    class _Scheduler:
        """As in vLLM 0.32."""

        requests: Mapping[str, Any]
        num_spec_tokens: int
        vllm_config: Any

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def _update_after_schedule(self, scheduler_output: Any) -> None: ...
        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any: ...
        def update_draft_token_ids(self, draft_token_ids: Any) -> None: ...
        def finish_requests(self, request_ids: Any, finished_status: Any) -> Any: ...

else:
    _Scheduler = object

HOOKS = ("_update_after_schedule", "update_from_output", "update_draft_token_ids", "finish_requests")
"""Methods of vLLM's scheduler that the mix-in extends."""


class PolicyScheduling(_Scheduler):
    """A mix-in for vLLM's schedulers; `speckv` holds the sessions."""

    overlaps = False
    """Whether a pass can be planned before the last one has ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.vllm_config
        settings = EnvironmentSettings.read()
        _require_servable(config, settings, self.num_spec_tokens, overlaps=self.overlaps)
        self.speckv = RequestSessions(
            settings, most=self.num_spec_tokens, vocab_size=int(config.model_config.get_vocab_size())
        )

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if not self.speckv.settings.per_request:
            drafting = [
                (name, self._budget(self.requests[name]))
                for name, number in scheduler_output.num_scheduled_tokens.items()
                if not _reads_prompt(self.requests[name], number)
            ]
            scheduler_output.num_spec_tokens_to_schedule = self.speckv.decide(drafting)
        super()._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Passes the outcome of a pass to the sessions."""
        # The engine cuts these lists at a stop, hence the lengths before.
        sampled = _lengths(model_runner_output)
        known = {name: self.requests[name] for name in sampled if name in self.requests}
        before = {name: request.num_output_tokens for name, request in known.items()}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        invalid = scheduler_output.num_invalid_spec_tokens or {}
        for name, request in known.items():
            emitted = request.num_output_tokens - before[name]
            # The first token is of the prompt's pass, which is no step; a stale pass emits nothing.
            if not emitted or not before[name]:
                continue
            drafted = len(scheduler_output.scheduled_spec_decode_tokens.get(name, ())) - invalid.get(name, 0)
            accepted = min(max(sampled[name] - 1, 0), drafted)
            self.speckv.end(name, num_drafted=drafted, num_accepted=accepted, num_emitted=emitted)
        self.speckv.keep(self.requests.keys())
        return outputs

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Stores the draft's signals, and cuts drafts to each request's gamma."""
        settings, newest = self.speckv.settings, signals.take()
        rows = zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True)
        for place, (name, drafted) in enumerate(rows):
            request = self.requests.get(name)
            if request is None or request.is_finished() or request.is_prefill_chunk:
                continue
            if settings.signals and place < len(newest):
                self.speckv.store_signals(name, newest[place])
            if settings.per_request:
                del drafted[self.speckv.cut(name, self._budget(request), len(drafted)) :]
        super().update_draft_token_ids(draft_token_ids)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Closes the sessions of requests that are aborted."""
        finished = super().finish_requests(request_ids, finished_status)
        self.speckv.keep(self.requests.keys())
        return finished

    def _budget(self, request: Any) -> Budget:
        # Without max_tokens vLLM sets it to the room in the context.
        room = int(self.vllm_config.model_config.max_model_len) - int(request.num_prompt_tokens)
        return Budget(min(int(request.max_tokens), room), requested=request.max_tokens < room)


def make_scheduler(base: type, name: str, *, overlaps: bool = False) -> type:
    """A vLLM scheduler under a policy; ConfigError if this release lacks a method."""
    missing = [hook for hook in HOOKS if not hasattr(base, hook)]
    if missing:
        raise ConfigError(f"Expected vLLM 0.32, whose scheduler has {list(HOOKS)}; this one's lacks {missing}.")
    package = __name__.rpartition(".")[0]
    return type(name, (PolicyScheduling, base), {"__module__": package, "__doc__": base.__doc__, "overlaps": overlaps})


def _require_servable(config: Any, settings: EnvironmentSettings, num_spec_tokens: int, *, overlaps: bool) -> None:
    speculative, scheduling = config.speculative_config, config.scheduler_config
    if speculative is None or num_spec_tokens < 1:
        raise ConfigError("Expected a speculative_config: the policy chooses how many tokens to draft, not the draft.")
    overlapped = bool(scheduling.async_scheduling)
    if overlapped and not overlaps:
        raise ConfigError(
            "Expected speckv.integrations.vllm.SpecKVAsyncScheduler where async_scheduling is on, as by "
            "default on GPUs: SpecKVScheduler plans no pass before the last one has ended."
        )
    if overlapped and (settings.per_request or settings.signals):
        raise ConfigError(
            f"Expected async_scheduling=False beside {PER_REQUEST}=1 or {SIGNALS}=1: where passes overlap, drafts are "
            "padded and their signals come too late."
        )
    if settings.signals and config.parallel_config.world_size > 1:
        raise ConfigError(f"Expected one worker in the scheduler's own process beside {SIGNALS}=1, got more.")
    if settings.signals and not signals.installed():
        raise ConfigError(
            f"Expected the plugin of the group vllm.general_plugins to have run, as {SIGNALS}=1 needs. Install speckv "
            "where vLLM is (pip install --no-deps), and do not leave it out of VLLM_PLUGINS."
        )
    if not settings.per_request and not speculative.num_speculative_tokens_per_batch_size:
        raise ConfigError(
            "Expected num_speculative_tokens_per_batch_size in the speculative_config, such as "
            f"[[1, {scheduling.max_num_seqs}, {num_spec_tokens}]]: without it vLLM assumes the longest draft."
        )
    if settings.policy.learns_acceptance:
        _require_learnable(settings, int(scheduling.max_num_seqs))


def _require_learnable(settings: EnvironmentSettings, num_requests: int) -> None:
    policy = settings.policy
    if not settings.per_request:
        raise ConfigError(
            f"Expected {PER_REQUEST}=1 beside {policy.name!r}, which goes on learning, or it exported with --frozen: "
            "the gamma of a batch is no request's own choice, and its outcome arrives after the next choice."
        )
    if policy.granularity == "token" and not settings.signals:
        raise ConfigError(
            f"Expected {SIGNALS}=1 beside {policy.name!r}, which learns from the draft's signals, or it exported with "
            "--frozen."
        )
    require_turns(policy, num_requests)


def _reads_prompt(request: Any, number: int) -> bool:
    return bool(request.num_computed_tokens + number < request.num_tokens + request.num_output_placeholders)


def _lengths(output: Any) -> Mapping[str, int]:
    tokens: Sequence[Sequence[int]] = output.sampled_token_ids
    return {name: len(tokens[place]) for name, place in output.req_id_to_index.items()} if tokens else {}
