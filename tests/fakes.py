# SPDX-License-Identifier: Apache-2.0
"""Models without weights: lookup tables, and tiny random transformers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from speckv.models import CausalModel
from speckv.models.signals import ScoredTokens

VOCAB = 24


class TableModel:
    """A language model whose logits are looked up by the last two tokens."""

    def __init__(self, table: Tensor, context_limit: int = 10_000) -> None:
        self.table = table.double()
        self.vocab_size = table.shape[-1]
        self.context_limit = context_limit

    @staticmethod
    def random(seed: int, vocab: int = 7, scale: float = 2.0) -> "TableModel":
        generator = torch.Generator().manual_seed(seed)
        return TableModel(scale * torch.randn(vocab, vocab, vocab, generator=generator, dtype=torch.float64))

    def perturbed(self, seed: int, scale: float) -> "TableModel":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.table.shape, generator=generator, dtype=torch.float64)
        return TableModel(self.table + scale * noise, self.context_limit)

    @staticmethod
    def constant(probabilities: Sequence[float]) -> "TableModel":
        """The same distribution after every prefix."""
        size = len(probabilities)
        return TableModel(torch.tensor(probabilities, dtype=torch.float64).log().expand(size, size, size).clone())

    def logits_after(self, tokens: Sequence[int]) -> Tensor:
        return self.table[tokens[-2] if len(tokens) > 1 else 0, tokens[-1]]

    def sequence(self) -> "TableSequence":
        return TableSequence(self)


class TableSequence(ScoredTokens):
    def __init__(self, model: TableModel) -> None:
        self.model = model
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Tensor:
        tokens = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        assert tokens, "a pass needs a token"
        assert len(self.tokens) + len(tokens) <= self.model.context_limit, "context overflow"
        rows = []
        for token in tokens:
            self.tokens.append(token)
            rows.append(self.model.logits_after(self.tokens))
        return torch.stack(rows[-(num_logits or len(tokens)) :])

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class BatchTableModel:
    """A table model for many rows; pads nothing, so that wrong counts show."""

    def __init__(self, model: TableModel) -> None:
        self.model = model
        self.vocab_size, self.context_limit = model.vocab_size, model.context_limit
        self.device = torch.device("cpu")
        self.passes: list[list[int]] = []

    def rows(self) -> "TableRows":
        return TableRows(self)


class TableRows:
    """Rows of a table model; notes the rows of every pass."""

    def __init__(self, owner: BatchTableModel) -> None:
        self.owner = owner
        self.sequences: list[TableSequence] = []

    @property
    def lengths(self) -> list[int]:
        return [sequence.length for sequence in self.sequences]

    def add(self, count: int) -> None:
        self.sequences += [self.owner.model.sequence() for _ in range(count)]

    def remove(self, row: int) -> None:
        self.sequences[row] = self.sequences[-1]
        self.sequences.pop()

    def truncate(self, row: int, length: int) -> None:
        self.sequences[row].truncate(length)

    def extend(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int], *, last_only: bool = False) -> Tensor:
        assert tokens.shape == (len(rows), max(counts))
        assert len(set(rows)) == len(rows)
        self.owner.passes.append(list(rows))
        found = []
        for row, ids, count in zip(rows, tokens.tolist(), counts, strict=True):
            found.append(self.sequences[row].extend(ids[:count], num_logits=1 if last_only else count))
        return torch.cat(found)


def tiny_qwen(
    seed: int, *, like: Qwen2ForCausalLM | None = None, noise: float = 0.0, vocab_size: int = VOCAB
) -> Qwen2ForCausalLM:
    """A random two-layer Qwen2 in float64; `like` a given one plus noise, so that they often agree."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.25,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Qwen2ForCausalLM = Qwen2ForCausalLM(config).eval()
    model.double()
    if like is not None:
        weights = {name: value + noise * torch.randn_like(value) for name, value in like.state_dict().items()}
        model.load_state_dict(weights)
    return model


def as_causal(model: Qwen2ForCausalLM, name: str = "tiny") -> CausalModel:
    return CausalModel(
        name=name,
        hf=model,
        compression="fp16",
        dtype=torch.float64,
        device=torch.device("cpu"),
        vocab_size=VOCAB,
        context_limit=128,
    )


def fixed(model: CausalModel) -> CausalModel:
    """The same model with sequences in buffers of their own that do not move."""
    return replace(model, static=True, spare_buffers=[], graph_faults=[])


def on_device(model: CausalModel, device: torch.device) -> CausalModel:
    """The model moved to a device, where it begins with no buffers."""
    model.hf.to(device)  # type: ignore[arg-type]
    return replace(model, device=device, spare_buffers=[], graph_faults=[])


LETTERS = "abcdefghijklmnopqrstuvwx"


def save_tiny(folder: Path, model: Qwen2ForCausalLM, letters: str = LETTERS) -> Path:
    """Saves a tiny model as a model folder, with a tokenizer that has one token a letter, "a" being token 0."""
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=letters[0],
        eos_token=None,  # type: ignore[arg-type]
        pad_token=None,  # type: ignore[arg-type]
        bos_token=None,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
