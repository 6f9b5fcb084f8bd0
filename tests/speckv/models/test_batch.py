# SPDX-License-Identifier: Apache-2.0
"""Rows read a few at a time are rows read together."""

import pytest
import torch

from speckv.models import batch as batch_module
from speckv.models.batch import PaddedBatch
from tests.fakes import VOCAB, as_causal, tiny_qwen


@pytest.mark.parametrize("at_once", [1, 9, 20, 1000])
def test_reading_in_parts_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = as_causal(tiny_qwen(0))
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (3, 9, 1, 5, 7)]
    steps = [torch.randint(VOCAB, (5,), generator=generator) for _ in range(3)]
    monkeypatch.setattr(batch_module, "TOKENS_AT_ONCE", at_once)
    batch = PaddedBatch(model)
    states = batch.start(rows)
    assert states.shape == (5, 9, 32)
    for i, row in enumerate(rows):
        alone = PaddedBatch(model)
        torch.testing.assert_close(states[i, : len(row)], alone._start([row])[0])
    ahead = torch.stack([batch.advance(tokens) for tokens in steps])
    for i, row in enumerate(rows):
        alone = PaddedBatch(model)
        alone._start([row])
        for k, tokens in enumerate(steps):
            torch.testing.assert_close(ahead[k, i], alone.advance(tokens[i : i + 1])[0])
    kept = torch.tensor([4, 1])
    batch.keep(kept)
    assert batch.lengths.tolist() == [10, 12]
