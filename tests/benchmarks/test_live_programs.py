# SPDX-License-Identifier: Apache-2.0
"""The live benchmarks from command line to report, on a tiny random pair in place of the real one."""

import json
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against_transformers, live_decoding, qwen, step_breakdown
from benchmarks.gpu.models import load_random, random_pair
from benchmarks.gpu.settings import Settings
from speckv.models import ModelPair

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
    assert found["ours_over_assisted_at_the_same_gamma"]["estimate"] > 0
    assert list(found["arms"]) == [
        "transformers",
        "ours, plain",
        "ours, 2",
        "transformers, assisted, 2",
        "transformers, assisted, default",
    ]
    for arm in found["arms"].values():
        assert arm["prompts_with_another_text"] == 0
        assert len(arm["seconds"]) == len(PROMPTS)


def test_live_arms(report: Callable[..., dict[str, Any]]) -> None:
    found = report(live_decoding.main, "--gamma", "2")
    assert set(found["first_difference"]["best fixed"]) == {None}
    assert found["arms"]["best fixed"]["mean_gamma"] == 2
    assert found["speedup_over_best_fixed"]["best fixed"]["estimate"] == 1
    for seconds in found["decode_s"].values():
        assert len(seconds) == len(PROMPTS)


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


def test_steps_taken_apart(report: Callable[..., dict[str, Any]]) -> None:
    found = report(step_breakdown.main, "--gammas", "0", "2", needs_prompts=False)["gammas"]
    for parts in found.values():
        assert sum(parts[part] for part in step_breakdown.PARTS) == pytest.approx(parts["step"])
        assert parts["step_not_taken_apart"] > 0
    assert found["0"]["draft"] == 0 < found["2"]["draft"]
