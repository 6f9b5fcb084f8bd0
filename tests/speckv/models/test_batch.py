# SPDX-License-Identifier: Apache-2.0
"""Rows of a recorded batch equal rows that are read alone."""

import pytest
import torch

from speckv.models import ragged
from speckv.models.batch import RecordedBatch
from tests.fakes import VOCAB, as_causal, tiny_qwen


@pytest.mark.parametrize("at_once", [1, 9, 20, 1000])
def test_reading_in_parts_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_causal(tiny_qwen(0))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 7)]
    steps = [torch.randint(VOCAB, (5,), generator=generator) for _ in range(3)]
    monkeypatch.setattr(ragged, "TOKENS_AT_ONCE", at_once)
    batch = RecordedBatch(model)
    states = batch.start(rows)
    assert states.shape == (5, 9, 32)
    ahead = torch.stack([batch.advance(tokens) for tokens in steps])
    for i, row in enumerate(rows):
        text = torch.tensor([[*row, *(int(tokens[i]) for tokens in steps)]])
        alone = model.hf.base_model(text).last_hidden_state[0]
        torch.testing.assert_close(states[i, : len(row)], alone[: len(row)])
        torch.testing.assert_close(ahead[:, i], alone[len(row) :])
    batch.keep([4, 1])
    assert list(batch.lengths) == [10, 12]


def test_a_fork_goes_on_from_prefixes_and_leaves_the_batch_as_it_was() -> None:
    model = as_causal(tiny_qwen(0))
    rows = [[3, 1, 4, 1, 5], [9, 2, 6]]
    batch = RecordedBatch(model)
    batch.start(rows)
    fork = batch.fork([1, 0, 0], [2, 4, 1])
    ahead = fork.advance(torch.tensor([7, 8, 9]))
    for states, text in zip(ahead, ([9, 2, 7], [3, 1, 4, 1, 8], [3, 9]), strict=True):
        torch.testing.assert_close(states, model.hf.base_model(torch.tensor([text])).last_hidden_state[0, -1])
    assert list(batch.lengths) == [5, 3]
    torch.testing.assert_close(
        batch.advance(torch.tensor([2, 2]))[1],
        model.hf.base_model(torch.tensor([[9, 2, 6, 2]])).last_hidden_state[0, -1],
    )
