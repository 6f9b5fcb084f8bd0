# SPDX-License-Identifier: Apache-2.0
"""Records a batch of prompts: the target's output, and everything that the draft would have proposed along it.

Three passes. The target writes its text, batched over prompts. The draft reads prompt and text in one teacher-forced
pass, which gives its proposal and signals at every position. From each wrong proposal the draft continues by itself (a
roll-out), all such positions batched together. Past the end of a draft's context nothing is proposed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from speckv.decoding.prompt_lookup import PromptLookup
from speckv.decoding.request import token_budget
from speckv.decoding.sampling import SamplingConfig, check_finite, choose, gumbel_noise, request_seed, warp_logits
from speckv.models.causal import CausalModel
from speckv.models.processors import Processors
from speckv.models.ragged import LOGITS_ROWS, RaggedRows
from speckv.models.signals import signals
from speckv.profiling.lookup import draft_stops, with_lookup
from speckv.profiling.prompts import Prompt
from speckv.traces import NO_TOKEN, ROLLOUT_LENGTH, TraceSequence, accepted_lengths, round_mantissa
from speckv.types import NUM_SIGNALS

COMPACT_BELOW = 0.8
"""Finished rows are dropped from a batch once fewer than this share is still running."""
ROLLOUT_ROWS = 192
"""Roll-outs that advance together."""


@dataclass(slots=True, kw_only=True)
class _Text:
    prompt: Prompt
    prompt_tokens: list[int]
    seed: int
    budget: int
    processors: Processors | None
    tokens: list[int] = field(default_factory=list)
    finish: str = "length"
    signals: list[np.ndarray] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Proposals:
    tokens: np.ndarray
    signals: np.ndarray
    probs: np.ndarray
    rollout_start: np.ndarray
    rollout_tokens: np.ndarray
    rollout_signals: np.ndarray

    @staticmethod
    def none(length: int) -> "_Proposals":
        return _Proposals(
            tokens=np.full(length, NO_TOKEN, np.int32),
            signals=np.zeros((length, NUM_SIGNALS), np.float32),
            probs=np.zeros(length, np.float32),
            rollout_start=np.zeros(0, np.int16),
            rollout_tokens=np.zeros((0, ROLLOUT_LENGTH), np.int32),
            rollout_signals=np.zeros((0, ROLLOUT_LENGTH, NUM_SIGNALS), np.float32),
        )


class _Row(NamedTuple):
    text: _Text
    proposals: _Proposals


class Recorder:
    """Records prompts with one target and draft.

    Args:
        max_new_tokens: Token budget of a prompt; a text also ends with the target's context.
        known: Recordings with the same draft and sampling at other compressions, whose roll-outs from a shared text are
            copied.
    """

    def __init__(
        self,
        target: CausalModel,
        draft: CausalModel | PromptLookup,
        *,
        eos_token_ids: frozenset[int],
        sampling: SamplingConfig,
        max_new_tokens: int,
        known: Iterable[TraceSequence] = (),
    ) -> None:
        self.target, self.draft = target, draft
        self.eos_token_ids = eos_token_ids
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self._known: dict[str, list[TraceSequence]] = {}
        for sequence in known:
            self._known.setdefault(sequence.prompt_id, []).append(sequence)

    def record(self, prompts: Sequence[Prompt], token_ids: Sequence[Sequence[int]]) -> list[TraceSequence]:
        """Records one batch; a prompt's id also seeds its Gumbel noise.

        Raises:
            BudgetError: if a prompt does not fit the target's context.
            ModelError: if a model's cache cannot be cut back, or its rows cannot share passes.
        """
        texts = [self._begin(prompt, ids) for prompt, ids in zip(prompts, token_ids, strict=True)]
        self._write(texts)
        rows = [_Row(text, _Proposals.none(len(text.tokens))) for text in texts]
        if isinstance(self.draft, PromptLookup):
            return [
                with_lookup(self._finish(row), row.text.prompt_tokens, self.draft, self.eos_token_ids) for row in rows
            ]
        read = [row for row in rows if len(row.text.prompt_tokens) <= self.draft.context_limit]
        if read:
            self._roll_out(read, self._read(read, self.draft), self.draft.context_limit)
        return [self._finish(row) for row in rows]

    def _begin(self, prompt: Prompt, ids: Sequence[int]) -> _Text:
        budget = token_budget(ids, self.max_new_tokens, self.target.context_limit)
        return _Text(
            prompt=prompt,
            prompt_tokens=list(ids),
            seed=request_seed(self.sampling.seed, prompt.prompt_id),
            budget=budget,
            processors=self.target.request_processors(ids, budget),
        )

    # -- pass 1: the target writes --------------------------------------------------------------------------------

    def _write(self, texts: list[_Text]) -> None:
        batch = RaggedRows(self.target)
        hidden = batch.read([text.prompt_tokens for text in texts])
        hidden = hidden[torch.arange(len(texts)), torch.tensor(batch.lengths) - 1]
        active = list(texts)
        while True:
            tokens = self._emit(active, batch, hidden)
            running = [i for i, text in enumerate(active) if not _is_done(text)]
            if not running:
                return
            if len(running) < COMPACT_BELOW * len(active):
                batch = batch.copy_of(running)
                active, tokens = [active[i] for i in running], tokens[running]
            hidden = batch.advance(tokens)

    def _emit(self, texts: list[_Text], batch: RaggedRows, hidden: Tensor) -> Tensor:
        process = _Processing(texts, lambda i: texts[i].prompt_tokens + texts[i].tokens)
        chosen, found, probs = self._choose(batch, hidden, [(text.seed, len(text.tokens)) for text in texts], process)
        for i, text in enumerate(texts):
            if _is_done(text):
                continue
            text.tokens.append(int(chosen[i]))
            text.signals.append(found[i])
            text.probs.append(float(probs[i]))
            if text.tokens[-1] in self.eos_token_ids:
                text.finish = "eos"
        return chosen

    # -- pass 2: the draft reads ----------------------------------------------------------------------------------

    def _read(self, rows: list[_Row], draft: CausalModel) -> RaggedRows:
        batch = RaggedRows(draft)
        hidden = batch.read([(text.prompt_tokens + text.tokens[:-1])[: draft.context_limit] for text, _ in rows])
        for i, (text, proposals) in enumerate(rows):
            first = len(text.prompt_tokens) - 1
            count = batch.lengths[i] - first
            keys = [(text.seed, j) for j in range(count)]
            process = _Processing(
                [text] * count,
                lambda j, text=text: text.prompt_tokens + text.tokens[:j],  # type: ignore[misc]
            )
            chosen, proposals.signals[:count], proposals.probs[:count] = self._choose(
                batch, hidden[i, first : first + count], keys, process, text.tokens
            )
            proposals.tokens[:count] = chosen.cpu().numpy()
            wrong = proposals.tokens[:count] != np.array(text.tokens[:count])
            proposals.rollout_start = np.flatnonzero(wrong).astype(np.int16)
        return batch

    # -- pass 3: roll-outs ----------------------------------------------------------------------------------------

    def _roll_out(self, rows: list[_Row], batch: RaggedRows, limit: int) -> None:
        starts = [
            (i, int(m), len(text.prompt_tokens) + int(m))
            for i, (text, proposals) in enumerate(rows)
            for m in proposals.rollout_start
        ]
        results: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        for i, m, _ in starts:
            known = _known_roll_out(self._known.get(rows[i].text.prompt.prompt_id, ()), rows[i], m)
            if known is not None:
                results[i, m] = known
        starts = [start for start in starts if start[:2] not in results]
        starts.sort(key=lambda start: start[2])  # similar lengths need less padding
        for begin in range(0, len(starts), ROLLOUT_ROWS):
            chunk = starts[begin : begin + ROLLOUT_ROWS]
            tokens, found = self._roll_out_chunk(rows, batch, chunk, limit)
            results |= {(i, m): (tokens[k], found[k]) for k, (i, m, _) in enumerate(chunk)}
        for i, (_, proposals) in enumerate(rows):
            found_here = [results[i, int(m)] for m in proposals.rollout_start]
            if found_here:
                proposals.rollout_tokens = np.stack([tokens for tokens, _ in found_here])
                proposals.rollout_signals = np.stack([found for _, found in found_here])

    def _roll_out_chunk(
        self, rows: list[_Row], batch: RaggedRows, chunk: list[tuple[int, int, int]], limit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.full((len(chunk), ROLLOUT_LENGTH), NO_TOKEN, np.int32)
        found = np.zeros((len(chunk), ROLLOUT_LENGTH, NUM_SIGNALS), np.float32)
        running = len(chunk)  # texts are sorted by length, so those whose context ends are the last ones
        fork = batch.copy_of([i for i, _, _ in chunk], [n for _, _, n in chunk])
        token = torch.tensor([int(rows[i].proposals.tokens[m]) for i, m, _ in chunk], device=batch.model.device)
        for depth in range(ROLLOUT_LENGTH):
            fitting = sum(n + depth + 1 <= limit for _, _, n in chunk[:running])
            if fitting == 0:
                break
            if fitting < running:
                running, token = fitting, token[:fitting]
                fork = fork.copy_of(range(running))
            hidden = fork.advance(token)
            process = _Processing(
                [rows[i].text for i, _, _ in chunk[:running]],
                lambda k, depth=depth: _rolled_out(rows, chunk[k], tokens[k, :depth]),  # type: ignore[misc]
            )
            keys = [(rows[i].text.seed, m + 1 + depth) for i, m, _ in chunk[:running]]
            token, found[:running, depth], _ = self._choose(fork, hidden, keys, process)
            tokens[:running, depth] = token.cpu().numpy()
        return tokens, found

    # -- shared ---------------------------------------------------------------------------------------------------

    def _choose(
        self,
        batch: RaggedRows,
        hidden: Tensor,
        keys: list[tuple[int, int]],
        process: "_Processing",
        emitted: Sequence[int] | None = None,
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        chosen, found, probs = [], [], []
        for begin in range(0, len(hidden), LOGITS_ROWS):
            logits = batch.score(hidden[begin : begin + LOGITS_ROWS])
            part = signals(logits)
            check_finite(part, "model")
            warped = warp_logits(process(begin, logits), self.sampling)
            noise = None
            if self.sampling.mode == "gumbel":
                noise = torch.stack([gumbel_noise(*key, logits.shape[-1]) for key in keys[begin : begin + len(logits)]])
            tokens = choose(warped, self.sampling, noise)
            of = tokens if emitted is None else torch.tensor(emitted[begin : begin + len(logits)], device=tokens.device)
            chosen.append(tokens)
            found.append(part)
            probs.append(_probability(warped, of, self.sampling))
        return torch.cat(chosen), torch.cat(found).cpu().numpy(), torch.cat(probs).cpu().numpy()

    def _finish(self, row: _Row) -> TraceSequence:
        text, proposals = row
        tokens = np.array(text.tokens, np.int32)
        matches = proposals.tokens == tokens
        if self.sampling.mode == "greedy":
            accept_prob = matches.astype(np.float32)
        else:
            ratios = proposals.probs / np.maximum(np.array(text.probs), 1e-30)
            accept_prob = np.minimum(1.0, ratios).astype(np.float32)
        starts, roll_outs = proposals.rollout_start, proposals.rollout_tokens
        return TraceSequence(
            prompt_id=text.prompt.prompt_id,
            task=text.prompt.task,
            split=text.prompt.split,
            compression=self.target.compression,
            prompt_len=len(text.prompt_tokens),
            finish=text.finish,
            tokens=tokens,
            target_signals=round_mantissa(np.stack(text.signals).astype(np.float32)),
            draft_tokens=proposals.tokens,
            draft_signals=round_mantissa(proposals.signals.astype(np.float32)),
            accept_prob=round_mantissa(accept_prob),
            accepted_length=accepted_lengths(matches),
            eos_stop=draft_stops(tokens, proposals.tokens, starts, roll_outs, self.eos_token_ids),
            rollout_start=starts,
            rollout_tokens=roll_outs.astype(np.int32),
            rollout_signals=round_mantissa(proposals.rollout_signals.astype(np.float32)),
            prompt_tokens=np.array(text.prompt_tokens, np.int32),
        )


def _is_done(text: _Text) -> bool:
    return text.finish == "eos" or len(text.tokens) >= text.budget


@dataclass(frozen=True, slots=True)
class _Processing:
    texts: Sequence[_Text]
    so_far: Callable[[int], list[int]]

    def __call__(self, begin: int, logits: Tensor) -> Tensor:
        if all(text.processors is None for text in self.texts):
            return logits
        lines = []
        for i, line in enumerate(torch.split(logits, 1), begin):
            processors = self.texts[i].processors
            ids = torch.tensor([self.so_far(i)], device=line.device)
            lines.append(processors.draft(ids, line) if processors else line)
        return torch.cat(lines)


def _rolled_out(rows: list[_Row], start: tuple[int, int, int], drafted: np.ndarray) -> list[int]:
    i, mismatch, _ = start
    text, proposals = rows[i]
    return [*text.prompt_tokens, *text.tokens[:mismatch], int(proposals.tokens[mismatch]), *drafted.tolist()]


def _known_roll_out(known: Iterable[TraceSequence], row: _Row, mismatch: int) -> tuple[np.ndarray, np.ndarray] | None:
    for sequence in known:
        if not np.array_equal(sequence.tokens[:mismatch], row.text.tokens[:mismatch]):
            continue
        place = int(np.searchsorted(sequence.rollout_start, mismatch))
        same_start = place < len(sequence.rollout_start) and sequence.rollout_start[place] == mismatch
        if same_start and sequence.draft_tokens[mismatch] == row.proposals.tokens[mismatch]:
            return sequence.rollout_tokens[place], sequence.rollout_signals[place]
    return None


def _probability(warped: Tensor, tokens: Tensor, sampling: SamplingConfig) -> Tensor:
    if sampling.mode == "greedy":
        return torch.ones(len(tokens))
    return warped.log_softmax(-1).gather(-1, tokens[:, None])[:, 0].exp()
