# SPDX-License-Identifier: Apache-2.0
"""`control` with models inside wrappers, and with drafts whose vocabulary is padded otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from speckv.errors import ConfigError
from speckv.integrations.transformers import control
from speckv.integrations.transformers.control import NEEDS
from speckv.integrations.transformers.embedded import Embedded
from speckv.runtime import Policy
from tests.fakes import VOCAB, tiny_qwen
from tests.fakes_policies import Scheduled

GREEDY: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}


def prompt(seed: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, (1, 9), generator=torch.Generator().manual_seed(seed))


def policy(schedule: Scheduled) -> Policy:
    return Policy.of(schedule, learns=True, cost_ratio={"fp16": 0.3})


def asked(schedule: Scheduled) -> int:
    return sum(map(len, schedule.chosen))


def with_lora(model: Qwen2ForCausalLM) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in wrapped.named_parameters():
        parameter.data = parameter.data.double()
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2)
    return wrapped.eval()


@contextmanager
def without_pefts_warning() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


class Parallel(nn.Module):
    """Keeps the model where `DistributedDataParallel` keeps it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.slow
@pytest.mark.parametrize("given", ["the wrapper", "the model inside"])
def test_an_adapter_of_pefts_on_the_target(given: str) -> None:
    with without_pefts_warning():
        base = tiny_qwen(0)
        draft = tiny_qwen(1, like=base, noise=0.008)
        free = base.generate(prompt(0), **GREEDY).tolist()
        wrapped, schedule = with_lora(base), Scheduled.turns(3)
        plain = wrapped.generate(input_ids=prompt(0), **GREEDY).tolist()
        assert plain != free
        with control(wrapped if given == "the wrapper" else base, draft, policy(schedule)):
            ours = wrapped.generate(input_ids=prompt(0), assistant_model=draft, **GREEDY).tolist()
        assert ours == plain
        assert asked(schedule) > 0
        assert not set(NEEDS) & set(vars(base))


@pytest.mark.slow
@pytest.mark.parametrize("assistant", ["the wrapper", "the model inside"])
def test_an_adapter_of_pefts_on_the_draft_takes_part(assistant: str) -> None:
    with without_pefts_warning():
        target, base = tiny_qwen(0), tiny_qwen(0)
        plain = target.generate(prompt(0), **GREEDY).tolist()
        accepted = []
        draft: Any = base
        for adapted in (False, True):
            draft, schedule = with_lora(base) if adapted else base, Scheduled.turns(3)
            with control(target, draft, policy(schedule)):
                given = draft if assistant == "the wrapper" else base
                assert target.generate(prompt(0), assistant_model=given, **GREEDY).tolist() == plain
            accepted.append(sum(o.num_accepted for o in schedule.outcomes[-1]))
        assert accepted[0] > accepted[1]  # the adapter makes the draft differ from the target


def test_virtual_tokens_are_refused() -> None:
    with without_pefts_warning():
        peft = pytest.importorskip("peft")
        base, draft = tiny_qwen(0), tiny_qwen(1)
        config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(base, config)
        pairs: list[tuple[Any, Any]] = [(wrapped, draft), (draft, wrapped), (Parallel(wrapped), draft)]
        for target, other in pairs:
            with (
                pytest.raises(ConfigError, match=r"virtual tokens.*PROMPT_TUNING"),
                control(target, other, policy(Scheduled.turns(2))),
            ):
                pass
        with (
            pytest.raises(ConfigError, match="virtual tokens"),
            control(base, draft, policy(Scheduled.turns(2))),
        ):
            wrapped.generate(input_ids=prompt(0), assistant_model=draft, **GREEDY)


def test_adapters_that_act_on_some_of_the_tokens_of_a_pass_are_refused() -> None:
    with without_pefts_warning():
        peft = pytest.importorskip("peft")
        base, draft = tiny_qwen(0), tiny_qwen(1)
        config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6])
        wrapped = peft.get_peft_model(base, config)
        for target in (wrapped, base):
            with pytest.raises(ConfigError, match="activated LoRA"), control(target, draft, policy(Scheduled.turns(2))):
                pass


@pytest.mark.slow
def test_compiled_models_and_models_in_training_wrappers() -> None:
    target, draft = tiny_qwen(0), tiny_qwen(1)
    plain = target.generate(prompt(1), **GREEDY).tolist()
    wraps: list[Any] = [compiled, Parallel]
    for wrap in wraps:
        schedule = Scheduled.turns(3)
        wrapped: Any = wrap(target)
        with control(wrapped, wrap(draft), policy(schedule)):
            inner: Any = wrapped.module if isinstance(wrapped, Parallel) else wrapped
            assert inner.generate(prompt(1), assistant_model=draft, **GREEDY).tolist() == plain
        assert asked(schedule) > 0


def test_what_is_no_transformers_model_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="got Linear"),
        control(nn.Linear(1, 1), tiny_qwen(1), policy(Scheduled.turns(2))),
    ):
        pass


def test_a_policy_inside_a_folder_takes_wrapped_models() -> None:
    target, draft, schedule = tiny_qwen(0), tiny_qwen(1), Scheduled.turns(3)
    embedded = Embedded({})
    embedded._policy = policy(schedule)
    found = embedded.generate(compiled(target), prompt(1), compiled(draft), **GREEDY)
    assert found.tolist() == target.generate(prompt(1), **GREEDY).tolist()
    assert asked(schedule) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1088, 1024), (1024, 1088)])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_draft_whose_vocabulary_is_padded_otherwise(sizes: tuple[int, int], sampled: bool) -> None:
    target, draft = tiny_qwen(0, vocab_size=sizes[0]), tiny_qwen(1, vocab_size=sizes[1])
    schedule, options = Scheduled.turns(4), GREEDY | {"do_sample": sampled}
    with control(target, draft, policy(schedule)):
        ours = target.generate(prompt(2), assistant_model=draft, **options)
        with pytest.raises(ConfigError, match="got two"):
            target.generate(prompt(2), assistant_model=draft, tokenizer=1, assistant_tokenizer=2, **options)
    assert asked(schedule) > 0
    assert ours.shape == (1, 39)
    if not sampled:
        assert ours.tolist() == target.generate(prompt(2), **options).tolist()
    with pytest.raises(ValueError, match="different tokenizers"):  # transformers' own check is back
        target.generate(prompt(2), assistant_model=draft, **options)
