# SPDX-License-Identifier: Apache-2.0
"""Stopping criteria and logits processors under `control`: text, scores, calls and state of plain `generate`."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    Qwen2Tokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from speckv.errors import ConfigError
from speckv.integrations.transformers import candidates as module
from speckv.integrations.transformers import control
from speckv.runtime import Policy
from tests.fakes import LETTERS, VOCAB, tiny_qwen
from tests.fakes_policies import Scheduled, StopsUnsure
from tests.fakes_requests import QwenPair, prompt

GREEDY: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False}


def policy(schedule: Scheduled) -> Policy:
    return Policy.of(schedule, learns=True, cost_ratio={"fp16": 0.3})


class Ends(StoppingCriteria):
    """Met by a text that ends with given tokens; keeps no state."""

    def __init__(self, tail: list[int]) -> None:
        self.tail = tail

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        return torch.tensor([input_ids[0, -len(self.tail) :].tolist() == self.tail])


class Recalls(StoppingCriteria):
    """Met at a call number, whatever the text; keeps lengths of texts and scores."""

    def __init__(self, number: int) -> None:
        self.number, self.lengths, self.scored = number, list[int](), list[int]()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        self.scored.append(-1 if scores is None else len(scores))
        return torch.tensor([len(self.lengths) >= self.number])


class Unsure(StoppingCriteria):
    """Met where the newest token's processed probability is small."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if scores is None:
            return torch.tensor([False])
        return scores[-1].softmax(-1)[:, input_ids[0, -1]] < 0.2


class Alternates(LogitsProcessor):
    """A bias that depends on the number of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
        self.calls += 1
        return scores + 3.0 * (torch.arange(scores.shape[-1]) % 7 == self.calls % 7)


class Allows(LogitsProcessor):
    """Allows one token of a sequence a call, in place."""

    def __init__(self, sequence: list[int]) -> None:
        self.sequence, self.calls = sequence, 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
        scores[:, torch.arange(scores.shape[-1]) != self.sequence[self.calls]] = -torch.inf
        self.calls += 1
        return scores


def some_options(rng: np.random.Generator, free: list[int]) -> dict[str, Any]:
    """Random criteria and processors, with fresh state; `free` is the text without them."""
    at = int(rng.integers(11, 48))
    criteria: list[Any] = [
        Ends(free[at : at + int(rng.integers(1, 3))]),
        Recalls(int(rng.integers(5, 60))),
        Unsure(),
        MaxLengthCriteria(int(rng.integers(5, 70))),
        EosTokenCriteria(free[at]),
    ]
    processors: list[Any] = [Alternates(), Allows(rng.integers(1, VOCAB, 80).tolist())]
    options: dict[str, Any] = {
        "stopping_criteria": StoppingCriteriaList(c for c in criteria if rng.random() < 0.4),
        "logits_processor": LogitsProcessorList(p for p in processors if rng.random() < 0.4),
    }
    if rng.random() < 0.3:
        options |= {"eos_token_id": free[int(rng.integers(20, 48))], "pad_token_id": 0}
    if rng.random() < 0.3:
        options["repetition_penalty"] = 1.2
    if rng.random() < 0.5:
        options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    return options


def kept(options: dict[str, Any]) -> list[Any]:
    """What the criteria and processors of a call hold after it."""
    return [
        {name: value for name, value in vars(item).items() if not isinstance(value, torch.Tensor)}
        for item in (*options["stopping_criteria"], *options["logits_processor"])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16))
def test_random_criteria_and_processors_leave_text_scores_and_state_of_plain_generate(
    seed: int, pair: QwenPair
) -> None:
    target, draft = pair
    free = target.generate(prompt(seed), **GREEDY)[0].tolist()
    first, second = (some_options(np.random.default_rng(seed), free) for _ in range(2))
    plain = target.generate(prompt(seed), **GREEDY, **first)
    schedule = (Scheduled.random(seed), Scheduled.turns(9), StopsUnsure(0.3))[seed % 3]
    with control(target, draft, policy(schedule)):
        ours = target.generate(prompt(seed), assistant_model=draft, **GREEDY, **second)
    if not isinstance(plain, torch.Tensor):
        assert len(ours.scores) == len(plain.scores)
        torch.testing.assert_close(ours.scores, plain.scores, atol=1e-4, rtol=1e-4)
        if not any(
            isinstance(item, Allows) for item in first["logits_processor"]
        ):  # plain `generate` keeps its changes
            torch.testing.assert_close(ours.logits, plain.logits, atol=1e-4, rtol=1e-4)
        ours, plain = ours.sequences, plain.sequences
    assert ours.tolist() == plain.tolist()
    assert kept(second) == kept(first)


@pytest.mark.parametrize("gamma", [0, 1, 4, 9])
def test_criteria_with_state_are_called_once_a_token_and_in_order(gamma: int, pair: QwenPair) -> None:
    target, draft = pair
    recalls = Recalls(17)
    with control(target, draft, policy(Scheduled.turns(gamma))):
        ours = target.generate(
            prompt(0),
            assistant_model=draft,
            stopping_criteria=StoppingCriteriaList([recalls]),
            return_dict_in_generate=True,
            output_scores=True,
            **GREEDY,
        )
    assert ours.sequences.shape[1] == 9 + 17
    assert recalls.lengths == list(range(10, 27))
    assert recalls.scored == list(range(1, 18))


def test_functions_may_keep_state_too(pair: QwenPair) -> None:
    target, draft = pair
    calls = {"processor": 0, "criterion": 0}

    def biased(input_ids: Any, scores: Any) -> Any:  # noqa: ARG001
        calls["processor"] += 1
        return scores + 3.0 * (torch.arange(scores.shape[-1]) % 7 == calls["processor"] % 7)

    def ends(input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG001
        calls["criterion"] += 1
        return torch.tensor([calls["criterion"] == 15])

    options: dict[str, Any] = {"logits_processor": [biased], "stopping_criteria": [ends], **GREEDY}
    plain = target.generate(prompt(5), **options).tolist()
    calls.update(processor=0, criterion=0)
    with control(target, draft, policy(Scheduled.turns(5))):
        assert target.generate(prompt(5), assistant_model=draft, **options).tolist() == plain
    assert calls == {"processor": 15, "criterion": 15}


def test_criteria_and_processors_may_share_state(pair: QwenPair) -> None:
    class Reads(StoppingCriteria):
        def __init__(self, processor: Alternates) -> None:
            self.processor = processor

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            return torch.tensor([self.processor.calls == 21])

    target, draft = pair
    shared = Alternates()
    with control(target, draft, policy(Scheduled.turns(5))):
        ours = target.generate(
            prompt(1),
            assistant_model=draft,
            logits_processor=LogitsProcessorList([shared]),
            stopping_criteria=StoppingCriteriaList([Reads(shared)]),
            **GREEDY,
        )
    assert ours.shape[1] == 9 + 21
    assert shared.calls == 21


@pytest.mark.slow
def test_stop_strings_end_the_text_where_plain_generate_ends_it(
    pair: QwenPair,
) -> None:
    target, draft = pair
    tokenizer = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[], unk_token="a")
    for seed in range(3):
        free = target.generate(prompt(seed), **GREEDY)[0].tolist()
        options = {"stop_strings": [tokenizer.decode(free[20:22])], "tokenizer": tokenizer, **GREEDY}
        plain = target.generate(prompt(seed), **options)
        with control(target, draft, policy(Scheduled.turns(6))):
            ours = target.generate(prompt(seed), assistant_model=draft, **options)
        assert ours.tolist() == plain.tolist()


def test_a_streamer_receives_the_tokens_of_the_cut_text(pair: QwenPair) -> None:
    class Collects(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    target, draft = pair
    streamer = Collects()
    with control(target, draft, policy(Scheduled.turns(6))):
        ours = target.generate(
            prompt(2),
            assistant_model=draft,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([Recalls(13)]),
            **GREEDY,
        )
    assert streamer.tokens == ours[0].tolist()
    assert len(streamer.tokens) == 22
    assert streamer.ended


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, 10, 11, 30, 60])
def test_a_length_criterion_of_the_users_replaces_the_budget(length: int, pair: QwenPair) -> None:
    target, draft = pair
    options = {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(length)]), **GREEDY}
    schedule = Scheduled.turns(4)
    with control(target, draft, policy(schedule)):
        ours = target.generate(prompt(3), assistant_model=draft, **options)
    assert ours.tolist() == target.generate(prompt(3), **options).tolist()
    assert ours.shape[1] == max(length, 10)
    assert sum(o.num_emitted for o in schedule.outcomes[-1]) == max(length - 10, 0)


def test_without_criteria_or_state_nothing_is_added_to_the_loop(
    pair: QwenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = pair
    monkeypatch.setattr(module, "ExactBlocks", lambda *_: pytest.fail("the loop is changed"))
    free = target.generate(prompt(4), **GREEDY)[0].tolist()
    options = GREEDY | {"eos_token_id": free[40], "pad_token_id": 0, "repetition_penalty": 1.2, "max_time": 1000.0}
    with control(target, draft, policy(Scheduled.turns(3))):
        target.generate(prompt(4), assistant_model=draft, **options)


@pytest.mark.parametrize(
    "options", [{"guidance_scale": 1.5}, {"guidance_scale": 1.5, "negative_prompt_ids": prompt(1)}]
)
def test_guidance_is_refused_before_anything_is_decoded(options: dict[str, Any], pair: QwenPair) -> None:
    target, draft = pair
    passes: list[int] = []
    hook = target.register_forward_hook(lambda *_: passes.append(1))
    with control(target, draft, policy(Scheduled.turns(3))), pytest.raises(ConfigError, match=r"guidance_scale=1\.5"):
        target.generate(prompt(0), assistant_model=draft, **GREEDY, **options)
    hook.remove()
    assert not passes


def test_a_criterion_that_cannot_be_copied_is_refused_by_name(
    pair: QwenPair,
) -> None:
    class Streams(StoppingCriteria):
        def __init__(self) -> None:
            self.source = (i for i in range(3))

    target, draft = pair
    with control(target, draft, policy(Scheduled.turns(3))), pytest.raises(ConfigError, match="got Streams"):
        target.generate(prompt(0), assistant_model=draft, stopping_criteria=StoppingCriteriaList([Streams()]), **GREEDY)


QUANTILE = 64.4
"""Of chi square with 24 degrees of freedom: a right sampler is above it once in 100,000 runs."""


@pytest.mark.slow
def test_sampled_texts_cut_by_a_criterion_have_the_targets_distribution() -> None:
    """The first two new tokens of 400 texts, with a bias by call; an even first token ends the text."""

    class Even(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
            return torch.tensor([bool(input_ids[0, -1] % 2 == 0) or input_ids.shape[1] == 7])

    target = tiny_qwen(0)
    draft, ids, number = tiny_qwen(1, like=target, noise=0.1), prompt(3)[:, :5], 400
    torch.manual_seed(0)
    counts = np.zeros((VOCAB, VOCAB + 1))
    made = policy(Scheduled.turns(3, 2))
    with control(target, draft, made):
        for _ in range(number):
            text = target.generate(
                ids,
                assistant_model=draft,
                logits_processor=LogitsProcessorList([Alternates()]),
                stopping_criteria=StoppingCriteriaList([Even()]),
                max_new_tokens=6,
                do_sample=True,
                top_k=0,
            )[0, 5:].tolist()
            assert len(text) == (1 if text[0] % 2 == 0 else 2)
            counts[text[0], text[1] if len(text) == 2 else VOCAB] += 1
    bias = [3.0 * (torch.arange(VOCAB) % 7 == call) for call in (1, 2)]
    first = torch.softmax(target(ids).logits[0, -1] + bias[0], -1)
    after = torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
    second = torch.softmax(target(after).logits[:, -1] + bias[1], -1)
    expected = np.zeros_like(counts)
    expected[:, :VOCAB] = (first[:, None] * second).detach().numpy() * number
    expected[::2, :VOCAB] = 0
    expected[::2, VOCAB] = first[::2].detach().numpy() * number
    order = np.argsort(expected, axis=None)[::-1]
    cells = np.split(order, np.searchsorted(np.cumsum(expected.ravel()[order]), number * np.arange(1, 25) / 25))
    observed, wanted = (np.array([table.ravel()[cell].sum() for cell in cells]) for table in (counts, expected))
    keep = wanted > 0
    assert ((observed - wanted)[keep] ** 2 / wanted[keep]).sum() < QUANTILE
