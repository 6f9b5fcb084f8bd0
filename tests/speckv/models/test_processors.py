# SPDX-License-Identifier: Apache-2.0
"""Logits processors along a speculative text: scores and state as in plain decoding, whatever was drafted."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as known

from speckv.errors import ConfigError
from speckv.models.processors import ROW_WISE, Processors
from tests.fakes import tiny_qwen

VOCAB = 11


class Counts(LogitsProcessor):
    """Allows one token a call, and changes its argument in place."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002
        scores[:, torch.arange(VOCAB) != self.calls % VOCAB] = -torch.inf
        self.calls += 1
        return scores


class Sums(LogitsProcessor):
    """Adds a bias that depends on all scores and lengths that it was called with."""

    def __init__(self) -> None:
        self.total, self.lengths = 0.0, list[int]()

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.total += float(scores.clamp(-9, 9).sum())
        self.lengths.append(input_ids.shape[1])
        return scores + self.total * torch.arange(VOCAB) / VOCAB


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor([tokens])


def plain(processors: LogitsProcessorList, text: torch.Tensor, start: int, scores: torch.Tensor) -> torch.Tensor:
    """Each position processed once, in order."""
    return torch.cat(
        [
            processors(text[:, : start + i], scores[i : i + 1].clone())  # type: ignore[arg-type]
            for i in range(len(scores))
        ]
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_schedules_leave_scores_and_state_of_plain_decoding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = torch.from_numpy(rng.integers(0, VOCAB, (1, 40)))
    scores = torch.from_numpy(rng.normal(size=(40, VOCAB)).astype(np.float32))
    theirs = [Sums(), known.RepetitionPenaltyLogitsProcessor(1.5), Counts(), known.TopKLogitsWarper(3)]
    expected = plain(LogitsProcessorList(theirs), text, 3, scores[:30])
    sums, counts = Sums(), Counts()
    ours = Processors([sums, theirs[1], counts, theirs[3]])
    given, at = scores.clone(), 0
    while at < 30:
        gamma = int(rng.integers(0, 5))
        kept = min(int(rng.integers(1, gamma + 2)), 30 - at)
        drafted = text[0, 3 + at : 3 + at + gamma].clone()
        drafted[kept - 1 :] = 0  # rejected
        ours.begin_draft()
        for i in range(gamma):
            ours.draft(torch.cat([text[:, : 3 + at], drafted[None, :i]], 1), given[30 + i : 31 + i])
        rows = ours.verify(text[:, : 3 + at], drafted, given[at : at + gamma + 1])
        assert torch.equal(rows[:kept], expected[at : at + kept])
        ours.commit(kept)
        at += kept
    assert torch.equal(given, scores)
    assert counts.calls == 30
    assert sums.lengths == list(range(3, 33))
    assert sums.total == theirs[0].total  # type: ignore[attr-defined]


def test_a_draft_continues_from_the_state_after_the_emitted_text() -> None:
    counts = Counts()
    ours = Processors([counts])
    flat = torch.zeros(3, VOCAB)
    assert ours.verify(ids(1), ids(5, 6)[0], flat).argmax(-1).tolist() == [0, 1, 2]
    ours.commit(2)
    ours.begin_draft()
    assert [int(ours.draft(ids(1, 5, 0), flat[:1]).argmax()) for _ in range(2)] == [2, 3]
    assert ours.verify(ids(1, 5, 0), ids(2)[0], flat[:2]).argmax(-1).tolist() == [2, 3]
    assert counts.calls == 2
    assert not flat.any()


def test_transformers_own_processors_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `generate` makes from its settings; each row equals that of the list itself."""
    config = GenerationConfig(
        repetition_penalty=1.2,
        encoder_repetition_penalty=1.1,
        no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=3,
        bad_words_ids=[[3], [4, 5]],
        sequence_bias=[[[2], 1.0]],
        min_length=5,
        min_new_tokens=2,
        forced_bos_token_id=1,
        forced_eos_token_id=2,
        remove_invalid_values=True,
        exponential_decay_length_penalty=(2, 1.1),
        suppress_tokens=[6],
        begin_suppress_tokens=[7],
        do_sample=True,
        temperature=0.7,
        top_k=6,
        top_p=0.9,
        min_p=0.01,
        typical_p=0.9,
        epsilon_cutoff=0.001,
        eta_cutoff=0.001,
        renormalize_logits=True,
        max_length=30,
        num_beams=1,
        num_return_sequences=1,
    )
    config._eos_token_tensor = torch.tensor([2])
    model: Any = tiny_qwen(0)
    processors = model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=3,
        encoder_input_ids=ids(1, 2, 3),
        prefix_allowed_tokens_fn=lambda _, text: [i for i in range(VOCAB) if i != int(text[-1])],
        logits_processor=LogitsProcessorList([known.WatermarkLogitsProcessor(VOCAB, "cpu")]),
        device="cpu",
        model_kwargs={},
    )
    assert len(processors) >= 20
    ours = Processors(processors)
    assert not ours.stateful
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("copied"))
    text, scores = ids(1, 2, 3, 8, 9, 1, 4), torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    ours.begin_draft()
    assert torch.equal(ours.draft(text, scores[:1]), processors(text, scores[:1].clone()))
    found = ours.verify(text[:, :4], text[0, 4:], scores)
    assert torch.equal(found, plain(processors, text, 4, scores))
    ours.commit(4)


def test_rows_processed_in_one_call_equal_rows_processed_one_by_one() -> None:
    made = [
        known.TemperatureLogitsWarper(0.7),
        known.TopKLogitsWarper(5),
        known.MinPLogitsWarper(0.05),
        known.EpsilonLogitsWarper(0.01),
        known.SuppressTokensLogitsProcessor([3]),
        known.InfNanRemoveLogitsProcessor(),
        known.LogitNormalization(),
    ]
    assert {type(processor) for processor in made} == ROW_WISE
    text, scores = ids(*range(6)), torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(1))
    found = Processors(made).verify(text[:, :1], text[0, 1:], scores)
    assert torch.equal(found, plain(LogitsProcessorList(made), text, 1, scores))


def test_subclasses_of_transformers_processors_may_keep_state() -> None:
    class Warms(known.TemperatureLogitsWarper):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.temperature *= 2
            return super().__call__(input_ids, scores)

    warms = Warms(1.0)
    ours = Processors([LogitsProcessorList([warms])])
    assert ours.stateful
    ours.verify(ids(1), ids(2, 3)[0], torch.zeros(3, VOCAB))
    assert warms.temperature == 1.0
    ours.commit(1)
    assert warms.temperature == 2.0


def test_objects_beside_the_processors_are_copied_with_them() -> None:
    counts = Counts()
    ours = Processors([counts], beside=[counts, 1])
    (copied, one) = ours.begin_verify()
    ours.verify_row(ids(1), torch.zeros(1, VOCAB))
    assert isinstance(copied, Counts)
    assert (copied.calls, counts.calls, one) == (1, 0, 1)


def test_no_processors_are_none() -> None:
    assert Processors.of([]) is None
    assert Processors.of(LogitsProcessorList([Counts()])) is not None


def test_guidance_is_refused() -> None:
    guidance = known.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, tiny_qwen(0))
    for processors in ([guidance], LogitsProcessorList([LogitsProcessorList([guidance])])):
        with pytest.raises(ConfigError, match=r"guidance_scale=1\.5"):
            Processors(processors)


def test_a_processor_that_cannot_be_copied_is_refused() -> None:
    class Streams(LogitsProcessor):
        def __init__(self) -> None:
            self.source = (i for i in range(3))

    with pytest.raises(ConfigError, match="got Streams"):
        Processors([Streams()])
