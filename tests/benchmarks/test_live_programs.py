# SPDX-License-Identifier: Apache-2.0
"""The live benchmarks from command line to report, on a tiny random pair in place of the real one."""

import json
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import against_transformers, in_transformers, live_decoding, qwen, step_breakdown
from benchmarks.against_transformers import assisted_at
from benchmarks.arms import tune
from benchmarks.gpu.models import load_random, random_pair
from benchmarks.gpu.stage import Settings
from speckv.decoding.protocols import LanguageModel
from speckv.errors import ConfigError, TraceError
from speckv.models import ModelPair
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from tests.fakes import TableModel
from tests.fakes_traces import make_sequence, make_traces

PROMPTS = [{"id": f"p{i}", "task": "chat", "split": "test", "prompt": text} for i, text in enumerate(("Hi.", "Why?"))]


@pytest.fixture(autouse=True)
def tiny_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path, *, dtype: str, compression: str = "fp16", draft: str = "0.5b") -> ModelPair:
        del dtype, draft
        return load_random(replace(random_pair(Settings(device="cpu", tiny=True)), compression=compression))

    monkeypatch.setattr(qwen, "load_qwen", load)
    monkeypatch.setattr(qwen, "load_smol", load)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in PROMPTS), encoding="utf-8")

    def run(program: Callable[[], None], *arguments: str, needs_prompts: bool = True) -> dict[str, Any]:
        given = ["--prompts", str(prompts)] if needs_prompts else []
        common = ["--weights", str(tmp_path), "--max-new-tokens", "8", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["program", *given, *common, *arguments])
        program()
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found

    return run


@pytest.mark.parametrize("pair", ["qwen", "smol"])
def test_beside_transformers(pair: str, report: Callable[..., dict[str, Any]]) -> None:
    found = report(against_transformers.main, "--gamma", "2", "--pair", pair)
    for ratio, other in (("at_the_same_gamma", ""), ("on_our_layers", ", on our layers")):
        theirs, ours = (
            sum(found["arms"][name]["seconds"]) for name in (f"transformers, assisted, 2{other}", "ours, 2")
        )
        assert found[f"ours_over_assisted_{ratio}"]["estimate"] == pytest.approx(theirs / ours)
    assert list(found["arms"]) == [
        "transformers",
        "ours, plain",
        "ours, 2",
        "transformers, assisted, 2",
        "transformers, assisted, default",
        "transformers, assisted, 2, on our layers",
    ]
    assert found["prompts"] == ["p0", "p1"]
    for arm in found["arms"].values():
        assert arm["prompts_with_another_text"] == 0
        assert len(arm["seconds"]) == len(PROMPTS)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    Policy.of(ConstantGamma(1), name="mine", fallback={"fp16": 1}).save(tmp_path / "mine.speckv")
    return str(tmp_path / "mine.speckv")


def test_inside_transformers_with_a_constant_tuned_there(
    report: Callable[..., dict[str, Any]], policy: str, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    lines = [{**line, "id": f"t-{line['id']}", "split": "train"} for line in PROMPTS]
    train.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = report(
        in_transformers.main,
        *("--policy", policy, "--train", str(train), "--train-per-task", "2", "--gammas", "1", "3", "--constants"),
    )
    best = found["best_constant"]
    assert best["train_prompts"] == ["t-p0", "t-p1"]
    assert set(best["seconds_on_train_prompts"]) == {"1", "3"}
    assert best["seconds_on_train_prompts"][str(best["gamma"])] == min(best["seconds_on_train_prompts"].values()) > 0
    ours = ("control", "control on our layers", "custom_generate")
    assert list(found["arms"]) == [
        "transformers",
        "transformers on our layers",
        f"transformers, assisted, {best['gamma']}",
        "transformers, assisted, default",
        "transformers, assisted, heuristic",
        *(f"{way}, {best['gamma']}" for way in ours),
        *(f"{way}, policy" for way in ours),
    ]
    assert found["prompts"] == ["p0", "p1"]
    for arm in found["arms"].values():
        assert arm["prompts_with_another_text"] == 0
        assert len(arm["seconds"]) == len(PROMPTS)
    assert (
        found["arms"][f"transformers, assisted, {best['gamma']}"]["speedup_over_their_best_constant"]["estimate"] == 1
    )


def test_inside_transformers_with_a_known_constant(report: Callable[..., dict[str, Any]], policy: str) -> None:
    found = report(in_transformers.main, "--policy", policy, "--gamma", "2")
    assert found["best_constant"] == {"gamma": 2, "seconds_on_train_prompts": {}, "train_prompts": []}
    assert "transformers, assisted, 2" in found["arms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--train --gamma is required"),
        (["--gamma", "2", "--train", "t"], "not allowed with"),
        (["--gamma", "0"], "at least 1 token"),
        (["--train", "t", "--gammas", "0", "1"], "at least 1 token"),
    ],
)
def test_no_constant_or_one_that_cannot_be_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        in_transformers.parse(["--prompts", "p", "--weights", "w", "--policy", "m", *arguments])
    assert message in capsys.readouterr().err


def test_prompts_of_another_split_are_no_train_prompts(report: Callable[..., dict[str, Any]], policy: str) -> None:
    tests = str(Path(policy).parent / "prompts.jsonl")
    with pytest.raises(ConfigError, match=r"train prompts in .*prompts\.jsonl, found none"):
        report(in_transformers.main, "--policy", policy, "--train", tests)


def test_a_constant_is_what_transformers_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another arm left behind: each says its draft length, schedule and threshold anew."""
    pair = qwen.load_qwen(tmp_path, dtype="auto")
    asked = list[int]()
    inner: Callable[..., Any] = pair.draft.hf.generate  # type: ignore[assignment]

    def generate(*args: Any, **options: Any) -> Any:
        drafted = inner(*args, **options)
        asked.append(drafted.sequences.shape[1] - options["input_ids"].shape[1])
        return drafted

    monkeypatch.setattr(pair.draft.hf, "generate", generate)
    arms = {gamma: assisted_at(pair, gamma, 12) for gamma in (3, 1)}
    unsure = assisted_at(pair, 20, 12, threshold=0.99)
    for gamma in (3, 1, 3):
        asked.clear()
        unsure([5, 6, 7], "any")
        assert max(asked) == 1  # a random model is never that sure
        asked.clear()
        arms[gamma]([5, 6, 7], "any")
        # No draft is longer; shorter ones come at the end of the text alone.
        assert max(asked) == asked[0] == gamma
        assert all(number == gamma for number in asked[:-2])


def test_the_constant_of_the_fewest_seconds_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.arms.time.perf_counter", lambda: now)

    def taking(seconds: float) -> Callable[..., list[int]]:
        def decode(ids: Any, _: str) -> list[int]:
            nonlocal now
            now += seconds * len(ids)
            return []

        return decode

    found = tune({1: taking(2.0), 2: taking(0.5), 4: taking(1.0)}, {"a": [0], "b": [0, 0]})
    assert found.seconds == {1: 6.0, 2: 1.5, 4: 3.0}
    assert (found.gamma, found.prompts) == (2, ["a", "b"])


def test_live_arms(report: Callable[..., dict[str, Any]]) -> None:
    found = report(live_decoding.main, "--gamma", "2")
    assert set(found["first_difference"]["best fixed"]) == {None}
    assert found["arms"]["best fixed"]["mean_gamma"] == 2
    assert found["speedup_over_best_fixed"]["best fixed"]["estimate"] == 1
    for seconds in found["decode_s"].values():
        assert len(seconds) == len(PROMPTS)


def test_live_arms_are_held_to_their_replay(report: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    recordings = tmp_path / "recorded.parquet"
    length = len(qwen.load_qwen(tmp_path, dtype="auto").encode(str(PROMPTS[1]["prompt"])))
    sequences = [make_sequence([True] * 8, prompt_id=p, split="test", prompt_len=length) for p in ("p1", "p2")]
    make_traces(sequences, max_new_tokens=8).save(recordings)
    found = report(live_decoding.main, "--gamma", "2", "--traces", str(recordings))["prediction"]
    assert (found["prompts"], found["check"]) == (["p1"], "not checked")
    assert set(found["arms"]) == {"autoregressive", "best fixed", "self-timed"}
    plain = found["arms"]["autoregressive"]
    assert plain["predicted_tokens"] == plain["measured_tokens"] == 7
    assert plain["error"] == pytest.approx(plain["predicted_s"] / plain["measured_s"] - 1)
    make_traces(
        [make_sequence([True] * 8, prompt_id="p1", split="test", prompt_len=length + 1)], max_new_tokens=8
    ).save(recordings)
    with pytest.raises(TraceError, match="Expected prompt p1 to have"):
        report(live_decoding.main, "--gamma", "2", "--traces", str(recordings))


def test_turns_are_of_one_step_each_and_all_finish() -> None:
    order: list[str] = []

    def steps(name: str, count: int) -> Generator[Any, None, Any]:
        for _ in range(count):
            order.append(name)
            yield None
        return name * 2

    found = dict[str, Any](
        live_decoding.in_turns({"a": steps("a", 3), "b": steps("b", 1), "c": steps("c", 2)}, first=1)
    )
    assert found == {"a": "aa", "b": "bb", "c": "cc"}
    assert "".join(order) == "bcacaa"


def test_a_model_that_is_taken_apart_says_where_it_runs() -> None:
    """By it the loop decides what to wait for: taken apart it shall be the loop that it is otherwise."""
    elsewhere = SimpleNamespace(device=torch.device("meta"))
    assert step_breakdown.TimedModel(cast("LanguageModel", elsewhere), "verify", {}).device == elsewhere.device
    assert step_breakdown.TimedModel(TableModel.random(4), "verify", {}).device == torch.device("cpu")


def test_steps_taken_apart(report: Callable[..., dict[str, Any]]) -> None:
    found = report(step_breakdown.main, "--gammas", "0", "2", needs_prompts=False)["gammas"]
    for parts in found.values():
        assert sum(parts[part] for part in step_breakdown.PARTS) == pytest.approx(parts["step"])
        assert parts["step_not_taken_apart"] > 0
    assert found["0"]["draft"] == 0 < found["2"]["draft"]
