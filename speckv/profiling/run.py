# SPDX-License-Identifier: Apache-2.0
"""Records a whole trace file, shard by shard, so that a kill at any moment loses one batch at most.

Shards lie in `<out>.parts/`, each written whole and named by a hash of its prompts' token ids. A rerun with the same
plan skips those that exist; at the end they are merged into `<out>` and the folder is removed.
"""

import gc
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from speckv.decoding import SamplingConfig, draft_source
from speckv.errors import DataError, TraceError
from speckv.models.causal import CausalModel
from speckv.models.compression import expand_compressed
from speckv.models.linear import dtype_name
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.models.tokenizer import encode_prompt, template_reads_date
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.profiling.resume import Tokenised, check_resumed, digest, prompt_digest, recording_date
from speckv.traces import TraceMetadata, TraceSequence, TraceSet, merge, recording_identity
from speckv.types import GAMMA_MAX

logger = logging.getLogger(__name__)
PADDED_TOKENS = 24_000
"""Prompt tokens of a batch, padding included."""
PACKAGES = ("torch", "transformers", "bitsandbytes", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """What to record.

    Attributes:
        pair: The models; its compression is replaced by each of `compressions` in turn.
        compressions: Of the target, in the order they are recorded.
        sampling: "greedy" or "gumbel"; a Gumbel recording also holds the acceptance probabilities that replay of
            rejection sampling needs.
        max_new_tokens: Token budget of every prompt.
        max_prompt_tokens: Longer prompts are left out, before `per_task` counts.
        per_task: First so many prompts of every (split, task), by split; all where a split is absent.
        skip: So many prompts of every (split, task) are passed over first, by split: the next part of a long recording.
        batch_size: Prompts a shard.
        notes: Free text for the file's readers.
        date: Local date and time in ISO format that chat templates are rendered with; "" for when the recording begins.
            Parts that are merged later need the same one, if the template prints it.
    """

    pair: PairConfig
    compressions: tuple[str, ...]
    sampling: SamplingConfig
    max_new_tokens: int = 128
    max_prompt_tokens: int = 1024
    per_task: dict[str, int]
    skip: dict[str, int] = field(default_factory=dict)
    batch_size: int = 120
    notes: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a recording stands, handed to `on_progress` after each shard.

    Attributes:
        done: Sequences recorded, those found from an earlier run included.
        total: Sequences in the plan.
        tokens_per_s: Output tokens a second in this run; 0 before the first shard.
        seconds_left: Estimate; infinite before the first shard.
        label: Compression being recorded.
    """

    done: int
    total: int
    tokens_per_s: float
    seconds_left: float
    label: str


def record_traces(
    plan: ProfilePlan, prompts: Sequence[Prompt], out: Path, *, on_progress: Callable[[Progress], None] | None = None
) -> TraceSet:
    """Records every prompt at every compression into one file.

    Args:
        plan: What to record.
        prompts: Candidates, in order of preference.
        out: The Parquet file; must not exist.
        on_progress: Called before the first and after every shard.

    Raises:
        TraceError: if `out` exists, or its parts belong to another plan, other models or other prompts.
        DataError: if no prompt is short enough.
        ConfigError: if the plan's date is none.
    """
    if out.exists():
        raise TraceError(
            f"Expected {out} not to exist, so that nothing is overwritten. Move it or choose another name."
        )
    parts = out.with_name(out.name + ".parts")
    date = recording_date(parts, plan.date)
    book = _Progress(on_progress)
    pair: ModelPair | None = None
    shards: list[Path] = []
    for compression in plan.compressions:
        config = replace(plan.pair, compression=compression)
        pair = None  # free the last target before the next is loaded
        gc.collect()
        pair = _load(config)
        chosen = select_prompts(prompts, pair, plan, date)
        metadata = _metadata(pair, plan, date)
        check_resumed(parts, asdict(plan), date, recording_identity(metadata), chosen)
        batches = make_batches(chosen, plan.batch_size)
        book.total = len(chosen) * len(plan.compressions)
        recorder = Recorder(
            pair.target,
            draft_source(pair),
            eos_token_ids=pair.eos_token_ids,
            sampling=plan.sampling,
            max_new_tokens=plan.max_new_tokens,
            known=[sequence for shard in shards for sequence in TraceSet.load(shard).sequences],
        )
        for batch in batches:
            shard = parts / f"{compression}-{digest([prompt_digest(*item) for item in batch])[:16]}.parquet"
            shards.append(shard)
            if not shard.is_file():
                book.report(compression)
                started = time.perf_counter()
                sequences = _record(recorder, batch)
                TraceSet(metadata=metadata, sequences=sequences).save(shard)
                book.add(sum(len(s.tokens) for s in sequences), len(batch), time.perf_counter() - started)
            book.done += len(batch)
            book.report(compression)
    merge([TraceSet.load(shard) for shard in shards]).save(out)
    shutil.rmtree(parts)
    return TraceSet.load(out)


def _record(recorder: Recorder, batch: list[Tokenised]) -> tuple[TraceSequence, ...]:
    sequences = recorder.record([p for p, _ in batch], [ids for _, ids in batch])
    return tuple(
        replace(sequence, prompt_tokens=np.array(ids, np.int32))
        for sequence, (_, ids) in zip(sequences, batch, strict=True)
    )


def select_prompts(prompts: Sequence[Prompt], pair: ModelPair, plan: ProfilePlan, date: datetime) -> list[Tokenised]:
    """Tokenises, leaves out what is too long, and keeps the first of every (split, task).

    Args:
        prompts: Candidates, in order of preference.
        pair: With the tokenizer.
        plan: With the limits.
        date: For chat templates that print it.

    Raises:
        DataError: if nothing is left.
    """
    counts: dict[tuple[str, str], int] = {}
    longest = min(plan.max_prompt_tokens, pair.target.context_limit)
    kept = []
    for prompt in prompts:
        group = (prompt.split, prompt.task)
        skip = plan.skip.get(prompt.split, 0)
        if counts.get(group, 0) >= skip + plan.per_task.get(prompt.split, len(prompts)):
            continue
        ids = encode_prompt(pair.tokenizer, prompt.text, chat_template=pair.config.chat_template, date=date)
        if 0 < len(ids) <= longest:
            counts[group] = counts.get(group, 0) + 1
            if counts[group] > skip:
                kept.append((prompt, ids))
    if not kept:
        raise DataError(f"Expected a prompt of at most {longest} tokens, found none. Raise max_prompt_tokens.")
    return kept


def make_batches(chosen: list[Tokenised], batch_size: int) -> list[list[Tokenised]]:
    """Cuts prompts into batches of alike length, inside windows of four batches that mix every task and split.

    A batch is padded to its longest prompt, so long prompts come in smaller batches: at most `PADDED_TOKENS` each.
    """
    by_group: dict[tuple[str, str], list[Tokenised]] = {}
    for item in chosen:
        by_group.setdefault((item[0].split, item[0].task), []).append(item)
    mixed = sorted(
        (
            (rank / len(group), index, item)
            for index, group in enumerate(by_group.values())
            for rank, item in enumerate(group)
        ),
        key=lambda entry: entry[:2],
    )
    window = 4 * batch_size
    batches: list[list[Tokenised]] = []
    for begin in range(0, len(mixed), window):
        batch: list[Tokenised] = []
        for item in sorted((item for _, _, item in mixed[begin : begin + window]), key=lambda item: len(item[1])):
            if batch and (len(batch) == batch_size or (len(batch) + 1) * len(item[1]) > PADDED_TOKENS):
                batches.append(batch)
                batch = []
            batch.append(item)
        batches.append(batch)
    return batches


class _Progress:
    """Counts what this run did, and reports."""

    def __init__(self, callback: Callable[[Progress], None] | None) -> None:
        self._callback = callback
        self.total = self.done = 0
        self._tokens = self._sequences = 0
        self._seconds = 0.0

    def add(self, tokens: int, sequences: int, seconds: float) -> None:
        self._tokens += tokens
        self._sequences += sequences
        self._seconds += seconds

    def report(self, label: str) -> None:
        if self._callback is None:
            return
        rate = self._tokens / self._seconds if self._seconds else 0.0
        left = (self.total - self.done) * self._seconds / self._sequences if self._sequences else float("inf")
        self._callback(Progress(done=self.done, total=self.total, tokens_per_s=rate, seconds_left=left, label=label))


def _load(config: PairConfig) -> ModelPair:
    pair = load_pair(config)
    expand_compressed(pair.target.hf, pair.target.dtype)
    return pair


def _plain(settings: Mapping[str, object]) -> dict[str, str | float | int]:
    """Settings as a recording holds them: numbers as they are, everything else as text."""
    return {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}


def _metadata(pair: ModelPair, plan: ProfilePlan, date: datetime) -> TraceMetadata:
    sampling = asdict(plan.sampling)
    if sampling["mode"] == "greedy":
        sampling = {"mode": "greedy", "seed": sampling["seed"]}
    sampling |= _plain(pair.target.defaults.settings) if pair.target.defaults else {}
    draft = draft_source(pair)
    model = draft if isinstance(draft, CausalModel) else None
    limits = {"target": pair.target.context_limit} | ({"draft": model.context_limit} if model else {})
    chat_template = bool(pair.config.chat_template and pair.tokenizer.chat_template)
    return TraceMetadata(
        target_id=Path(pair.target.name).name,
        draft_id=Path(draft.name).name,
        target_sha256=pair.target.sha256(),
        draft_sha256=model.sha256() if model else "",
        tokenizer_sha256=pair.tokenizer_sha256(),
        vocab_size=pair.target.vocab_size,
        dtype={
            pair.target.compression: dtype_name(pair.target.dtype),
            "draft": dtype_name(model.dtype) if model else "none",
        },
        sampling=sampling,
        max_new_tokens=plan.max_new_tokens,
        eos_token_ids=sorted(pair.eos_token_ids),
        chat_template=chat_template,
        device=describe_machine(pair.target.device)["processor" if pair.target.device.type == "cpu" else "accelerator"],
        versions={name: version(name) for name in PACKAGES},
        notes=plan.notes,
        gamma_max=GAMMA_MAX,
        template_date=date.isoformat() if chat_template and template_reads_date(pair.tokenizer) else "",
        context_limits=limits,
    )
