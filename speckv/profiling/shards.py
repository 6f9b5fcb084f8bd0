# SPDX-License-Identifier: Apache-2.0
"""Records a whole trace file, shard by shard; a run that is killed loses one batch at most.

Shards lie in `<out>.parts/`, named by a hash of their prompts' token ids, beside `plan.json`. A rerun with the same
plan skips those that exist. At the end they are merged into `<out>` and the folder is removed.
"""

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speckv.decoding import SamplingConfig, draft_source
from speckv.errors import ConfigError, DataError, TraceError
from speckv.files import write_atomically
from speckv.models.causal import CausalModel
from speckv.models.compression import expand_compressed
from speckv.models.dtypes import dtype_name
from speckv.models.pair import ModelPair, PairConfig, load_pair
from speckv.models.tokenizer import encode_prompt, template_reads_date
from speckv.profiling.lookup import require_absent
from speckv.profiling.machine import describe_machine
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.traces import TraceMetadata, TraceSet, merge, recording_identity
from speckv.types import GAMMA_MAX

logger = logging.getLogger(__name__)
PADDED_TOKENS = 24_000
"""Prompt tokens of a batch, padding included."""
PACKAGES = ("torch", "transformers", "bitsandbytes", "numpy", "pyarrow")

Tokenised = tuple[Prompt, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """What to record: a pair with its target at each of `compressions`.

    Attributes:
        sampling: "greedy" or "gumbel"; the latter also records acceptance probabilities for "rejection" replay.
        max_prompt_tokens: Longer prompts are left out, before `per_task` counts.
        per_task: Prompts of every (split, task), by split; all where a split is absent.
        skip: Prompts of every (split, task) that are passed over first, by split: for a recording in parts.
        date: Local ISO date and time for chat templates; "" for the start of the recording. Parts to be merged need
            the same one if the template prints it.
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
class RecordingProgress:
    """Progress of a recording, in sequences; those of an earlier run count as done.

    Before the first shard of this run `tokens_per_s` is 0 and `seconds_left` is infinite; the label is the compression.
    """

    done: int
    total: int
    tokens_per_s: float
    seconds_left: float
    label: str


def record_traces(
    plan: ProfilePlan,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    on_progress: Callable[[RecordingProgress], None] | None = None,
) -> TraceSet:
    """Records every prompt at every compression into one Parquet file, which must not exist.

    `prompts` are candidates in order of preference; `on_progress` is called before and after every shard.

    Raises:
        TraceError: if `out` exists, or its shards belong to another plan, other models or other prompts.
        DataError: if no prompt is short enough.
        ConfigError: if the plan's date is invalid.
    """
    require_absent(out)
    parts = out.with_name(out.name + ".parts")
    date = recording_date(parts, plan.date)
    meter = _ProgressMeter(on_progress)
    pair: ModelPair | None = None
    shards: list[Path] = []
    for compression in plan.compressions:
        config = replace(plan.pair, compression=compression)
        pair = None  # free the last target before the next is loaded
        gc.collect()
        pair = load_pair(config)
        expand_compressed(pair.target.hf, pair.target.dtype)
        chosen = select_prompts(prompts, pair, plan, date)
        metadata = _metadata(pair, plan, date)
        check_resumed(parts, asdict(plan), date, recording_identity(metadata), chosen)
        batches = make_batches(chosen, plan.batch_size)
        meter.total = len(chosen) * len(plan.compressions)
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
                meter.report(compression)
                started = time.perf_counter()
                sequences = recorder.record([prompt for prompt, _ in batch], [ids for _, ids in batch])
                TraceSet(metadata=metadata, sequences=tuple(sequences)).save(shard)
                meter.add(sum(len(s.tokens) for s in sequences), len(batch), time.perf_counter() - started)
            meter.done += len(batch)
            meter.report(compression)
    merge([TraceSet.load(shard) for shard in shards]).save(out)
    shutil.rmtree(parts)
    return TraceSet.load(out)


def select_prompts(prompts: Sequence[Prompt], pair: ModelPair, plan: ProfilePlan, date: datetime) -> list[Tokenised]:
    """Tokenises prompts, leaves out those that are too long, and keeps the first of every (split, task)."""
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
    """Batches of similar lengths and at most `PADDED_TOKENS`, in windows of four that mix every task and split."""
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


class _ProgressMeter:
    def __init__(self, callback: Callable[[RecordingProgress], None] | None) -> None:
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
        self._callback(
            RecordingProgress(done=self.done, total=self.total, tokens_per_s=rate, seconds_left=left, label=label)
        )


def _metadata(pair: ModelPair, plan: ProfilePlan, date: datetime) -> TraceMetadata:
    sampling = asdict(plan.sampling)
    if sampling["mode"] == "greedy":
        sampling = {"mode": "greedy", "seed": sampling["seed"]}
    if pair.target.defaults is not None:
        settings = pair.target.defaults.settings
        sampling |= {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}
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


# -- resuming ----------------------------------------------------------------------------------------------------------


def digest(words: Sequence[str]) -> str:
    """SHA-256 of words in their order."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def prompt_digest(prompt: Prompt, ids: Sequence[int]) -> str:
    """Hash of a prompt's id, task, split and token ids."""
    return digest([json.dumps([prompt.prompt_id, prompt.task, prompt.split, list(ids)])])


def recording_date(parts: Path, wanted: str) -> datetime:
    """Date of a recording: that of its plan file, else the wanted one (ISO format), else now."""
    try:
        date = datetime.fromisoformat(wanted) if wanted else datetime.now().replace(microsecond=0)
    except ValueError as error:
        raise ConfigError(f"Expected date=YYYY-MM-DD or date=YYYY-MM-DDTHH:MM:SS, got {wanted!r}.") from error
    noted = _read_plan(parts)
    return datetime.fromisoformat(noted["date"]) if noted else date


def check_resumed(
    parts: Path, plan: Mapping[str, Any], date: datetime, identity: Mapping[str, Any], chosen: Sequence[Tokenised]
) -> None:
    """Writes the plan file into the folder of the shards, or compares with the one that is there.

    `identity` is the metadata that all shards share. A TraceError names the first difference.
    """
    content = {
        "plan": plan,
        "date": date.isoformat(),
        "recording": identity,
        "prompts": {prompt.prompt_id: prompt_digest(prompt, ids) for prompt, ids in chosen},
    }
    content = json.loads(json.dumps(content))
    noted = _read_plan(parts)
    if noted is None:
        write_atomically(parts / "plan.json", json.dumps(content, sort_keys=True, indent=1))
        return
    remedy = "delete the folder to record everything again, or choose another out="
    for part, what in (("plan", "plan"), ("recording", "recording")):
        name = _first_difference(noted[part], content[part])
        if name is not None:
            raise TraceError(
                f"{parts} holds shards of another {what}: {name} was {noted[part].get(name)!r} and is "
                f"{content[part].get(name)!r}. Restore it, {remedy}."
            )
    name = _first_difference(noted["prompts"], content["prompts"])
    if name is not None:
        change = "has another text, task, split or chat template"
        if name not in content["prompts"]:
            change = "is no longer among the prompts"
        elif name not in noted["prompts"]:
            change = "was not among the prompts"
        raise TraceError(
            f"Expected the prompts that {parts} began to record, but {name!r} {change}. Restore it, {remedy}."
        )


def _read_plan(parts: Path) -> dict[str, Any] | None:
    note = parts / "plan.json"
    try:
        content: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    except ValueError:
        content = {}
    if {"plan", "date", "recording", "prompts"} <= set(content):
        return content
    if any(parts.glob("*.parquet")):
        raise TraceError(
            f"Expected a plan.json of this version beside the shards in {parts}, found none. Finish the recording with "
            "the version that began it, delete the folder, or choose another out=."
        )
    return None


def _first_difference(noted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    names = dict.fromkeys((*found, *noted))
    absent = object()
    return next((name for name in names if noted.get(name, absent) != found.get(name, absent)), None)
