# SPDX-License-Identifier: Apache-2.0
"""A killed recording goes on where it stopped, and nothing is lost or doubled."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

import speckv.profiling.shards as run_module
from speckv.cost import CostTable
from speckv.decoding import SamplingConfig
from speckv.errors import ConfigError, DataError, TraceError
from speckv.models import PairConfig
from speckv.profiling.calibrate import CalibrationPlan, CheckPlan, calibrate
from speckv.profiling.lookup import record_lookup
from speckv.profiling.prompts import Prompt
from speckv.profiling.record import Recorder
from speckv.profiling.shards import ProfilePlan, RecordingProgress, record_traces
from speckv.profiling.timing import TimingPlan
from speckv.runtime.constant import ConstantGamma
from speckv.traces import TraceSet
from tests.fakes import LETTERS, save_tiny, tiny_qwen

PROMPTS = [
    Prompt(
        prompt_id=f"{split}-{task}-{i}",
        task=task,
        text="".join(LETTERS[(i * k) % 24] for k in range(1, 4 + i)),
        split=split,
    )
    for split in ("train", "test")
    for task in ("code", "chat")
    for i in range(4)
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairConfig:
    folder = tmp_path_factory.mktemp("pair")
    target = tiny_qwen(0)
    save_tiny(folder / "target", target)
    save_tiny(folder / "draft", tiny_qwen(1, like=target, noise=0.02))
    return PairConfig(
        target=str(folder / "target"), draft=str(folder / "draft"), name="tiny", dtype="float32", device="cpu"
    )


def make_plan(pair: PairConfig) -> ProfilePlan:
    return ProfilePlan(
        pair=pair,
        compressions=("fp16",),
        sampling=SamplingConfig(),
        max_new_tokens=10,
        max_prompt_tokens=6,
        per_task={"train": 2, "test": 1},
        batch_size=2,
    )


def keys(traces: TraceSet) -> list[tuple[str, str]]:
    return sorted(s.key for s in traces.sequences)


def test_a_killed_recording_resumes(pair: PairConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, whole = make_plan(pair), tmp_path / "whole.parquet"
    expected = record_traces(plan, PROMPTS, whole)
    assert len(expected.sequences) == 6
    record, calls = Recorder.record, []

    def dies_at_the_third(self: Recorder, *arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "record", dies_at_the_third)
    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        record_traces(plan, PROMPTS, out)
    assert not out.exists()
    standings: list[RecordingProgress] = []
    resumed = record_traces(plan, PROMPTS, out, on_progress=standings.append)
    assert len(calls) == 4  # two shards, the one that died, and that one again
    assert standings[-1].done == standings[-1].total == 6
    assert keys(resumed) == keys(expected)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet", "whole.parquet"]


def test_shards_of_another_plan_are_not_mixed_in(
    pair: PairConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "merge", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record_traces(make_plan(pair), PROMPTS, out)
    with pytest.raises(TraceError, match="another plan"):
        record_traces(replace(make_plan(pair), max_new_tokens=11), PROMPTS, out)


TEMPLATE = "{% set date = strftime_now('%d %b %Y') %}{{ date }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def dated(pair: PairConfig, tmp_path: Path) -> PairConfig:
    """The pair with a chat template that prints the date; tokens "0" to "3" are its digits."""
    letters = LETTERS[:20] + "0123"
    folders: dict[str, Any] = {}
    for role, source in (("target", pair.target), ("draft", pair.draft)):
        model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.float32)
        folder = save_tiny(tmp_path / role, model, letters)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        folders[role] = str(folder)
    return replace(pair, **folders)


class Midnight(datetime):
    """A clock that a test sets."""

    moment = datetime(2021, 1, 30, 23, 59, 59, 5)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        del tz
        return cls.moment


def stop_after(count: int) -> Callable[[RecordingProgress], None]:
    def stop(progress: RecordingProgress) -> None:
        if progress.done >= count:
            raise KeyboardInterrupt

    return stop


@pytest.mark.slow
def test_one_date_holds_for_a_recording(dated: PairConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "datetime", Midnight)
    plan = replace(make_plan(dated), max_prompt_tokens=40)
    whole = record_traces(plan, PROMPTS, tmp_path / "whole.parquet")
    assert whole.metadata.template_date == "2021-01-30T23:59:59"
    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        record_traces(plan, PROMPTS, out, on_progress=stop_after(2))
    monkeypatch.setattr(Midnight, "moment", datetime(2021, 2, 1))
    record_traces(plan, PROMPTS, out)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    later = record_traces(plan, PROMPTS, tmp_path / "later.parquet")
    assert later.metadata.template_date == "2021-02-01T00:00:00"
    assert [s.prompt_tokens.tolist() for s in later.sequences] != [s.prompt_tokens.tolist() for s in whole.sequences]
    again = record_traces(replace(plan, date=whole.metadata.template_date), PROMPTS, tmp_path / "again.parquet")
    assert [s.prompt_tokens.tolist() for s in again.sequences] == [s.prompt_tokens.tolist() for s in whole.sequences]
    looked_up = record_lookup(whole, PROMPTS, replace(dated, draft="lookup"))  # with the date of the recording
    assert looked_up.metadata.template_date == whole.metadata.template_date
    assert looked_up.metadata.context_limits == {"target": 128}
    unknown = replace(whole.metadata, template_date="")
    with pytest.raises(TraceError, match="Expected prompt test-chat-0 to have"):
        record_lookup(replace(whole, metadata=unknown), PROMPTS, replace(dated, draft="lookup"))
    older = tuple(replace(s, prompt_tokens=np.zeros(0, np.int32)) for s in whole.sequences)
    with pytest.raises(TraceError, match="with the date that its chat template printed"):
        record_lookup(TraceSet(metadata=unknown, sequences=older), PROMPTS, replace(dated, draft="lookup"))


def test_a_recording_holds_its_prompts_and_context_limits(pair: PairConfig, tmp_path: Path) -> None:
    traces = record_traces(make_plan(pair), PROMPTS, tmp_path / "out.parquet")
    texts = {prompt.prompt_id: prompt.text for prompt in PROMPTS}
    for sequence in traces.sequences:
        assert sequence.prompt_tokens.tolist() == [LETTERS.index(letter) for letter in texts[sequence.prompt_id]]
    assert traces.metadata.context_limits == {"target": 128, "draft": 128}
    assert traces.metadata.template_date == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ({"text": "xyx"}, "but 'train-code-0' has another text, task, split or chat template"),
        ({"task": "chat"}, "has another text, task, split"),
        ({"prompt_id": "new"}, "but 'new' was not among the prompts"),
        ({"text": "abcdefgh"}, "is no longer among the prompts|was not among the prompts"),
    ],
)
def test_an_edited_prompt_is_refused_on_resume(
    pair: PairConfig, tmp_path: Path, edited: dict[str, str], message: str
) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(KeyboardInterrupt):
        record_traces(make_plan(pair), PROMPTS, out, on_progress=stop_after(2))
    prompts = [replace(PROMPTS[0], **edited), *PROMPTS[1:]]
    with pytest.raises(TraceError, match=message):
        record_traces(make_plan(pair), prompts, out)
    resumed = record_traces(make_plan(pair), PROMPTS, out)
    assert len(resumed.sequences) == 6


def test_other_models_are_refused_on_resume(pair: PairConfig, tmp_path: Path) -> None:
    folder = shutil.copytree(pair.target, tmp_path / "target")
    plan = make_plan(replace(pair, target=str(folder)))
    with pytest.raises(KeyboardInterrupt):
        record_traces(plan, PROMPTS, tmp_path / "out.parquet", on_progress=stop_after(2))
    save_tiny(folder, tiny_qwen(7))
    with pytest.raises(TraceError, match="shards of another recording: target_sha256 was"):
        record_traces(plan, PROMPTS, tmp_path / "out.parquet")


def test_shards_without_a_plan_are_refused(pair: PairConfig, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record_traces(make_plan(pair), PROMPTS, tmp_path / "out.parquet", on_progress=stop_after(2))
    note = tmp_path / "out.parquet.parts" / "plan.json"
    for content in ('{"plan": {}, "prompts": ""}', "cut"):
        note.write_text(content)
        with pytest.raises(TraceError, match=r"Expected a plan\.json of this version"):
            record_traces(make_plan(pair), PROMPTS, tmp_path / "out.parquet")


def test_a_date_that_is_none_is_refused(pair: PairConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected date=YYYY-MM-DD"):
        record_traces(replace(make_plan(pair), date="Monday"), PROMPTS, tmp_path / "out.parquet")


def test_prompts_that_exceed_the_targets_context_are_left_out(pair: PairConfig, tmp_path: Path) -> None:
    long = Prompt(prompt_id="long", task="code", text="abc" * 43, split="train")
    plan = replace(make_plan(pair), max_prompt_tokens=1000, per_task={"train": 1, "test": 0})
    traces = record_traces(plan, [long, *PROMPTS], tmp_path / "out.parquet")
    assert "long" not in traces.prompt_ids


def test_an_existing_file_is_not_overwritten(pair: PairConfig, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("mine")
    with pytest.raises(TraceError, match="not to exist"):
        record_traces(make_plan(pair), PROMPTS, out)
    assert out.read_text() == "mine"


def test_prompts_that_are_too_long(pair: PairConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 1 tokens"):
        record_traces(replace(make_plan(pair), max_prompt_tokens=1), PROMPTS, tmp_path / "out.parquet")


def test_parts_cover_the_whole(pair: PairConfig, tmp_path: Path) -> None:
    plan = make_plan(pair)
    first = record_traces(replace(plan, per_task={"train": 1, "test": 1}), PROMPTS, tmp_path / "a.parquet")
    rest = replace(plan, skip={"train": 1, "test": 1}, per_task={"train": 1, "test": 0})
    second = record_traces(rest, PROMPTS, tmp_path / "b.parquet")
    whole = record_traces(plan, PROMPTS, tmp_path / "c.parquet")
    assert sorted(keys(first) + keys(second)) == keys(whole)


def test_calibration_covers_every_width(pair: PairConfig, tmp_path: Path) -> None:
    plan = CalibrationPlan(
        name="here",
        pair=pair,
        compressions=("fp16",),
        timing=TimingPlan(reference_context=16, far_context=64, repeats=2, warmups=1),
        batches=(3, 1),
        check=CheckPlan(prompts=("abc", "bcdef"), max_new_tokens=12),
    )
    said: list[str] = []
    kept: list[CostTable] = []
    table = calibrate(plan, ConstantGamma(2), on_progress=said.append, keep=kept.append)
    assert [bool(so_far.fit) for so_far in kept] == [False, True]  # times are kept before they are checked
    assert kept[-1] == table
    entry = table.entry("fp16")
    assert list(entry.verify_widths) == list(entry.draft_widths) == list(range(1, 18))
    assert entry.dtype == "float32"
    assert all(t > 0 for t in (*entry.verify_s, *entry.draft_s, table.controller_s))
    assert len(entry.spread) == 17
    assert any("widths" in line for line in said)
    assert table.batches("fp16") == (1, 3)
    assert table.at_batch(2).entry("fp16").verify_pass_s(5, 16) > 0
    assert "torch product in float32" in entry.kernel
    assert (table.fit["fp16"].prompts, table.fit["fp16"].runs) == (2, 8)  # gammas 0, 2, 5 and a random schedule
    assert "batch 1/3, widths 1 to 17, contexts 16/64" in table.covers
    table.save(tmp_path / "here.json")
    assert CostTable.load(tmp_path / "here.json") == table


def test_long_prompts_come_in_smaller_batches() -> None:
    def make(i: int, length: int) -> tuple[Prompt, list[int]]:
        return Prompt(prompt_id=str(i), task="x", text="", split="train"), [0] * length

    items = [make(i, 10) for i in range(6)] + [make(i, run_module.PADDED_TOKENS * 5 // 12) for i in range(6, 11)]
    batches = run_module.make_batches(items, 4)
    assert sorted(p.prompt_id for batch in batches for p, _ in batch) == sorted(p.prompt_id for p, _ in items)
    assert [len(batch) for batch in batches] == [4, 2, 2, 2, 1]
    assert all(len(batch) * max(len(ids) for _, ids in batch) <= run_module.PADDED_TOKENS for batch in batches)
