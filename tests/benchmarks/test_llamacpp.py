# SPDX-License-Identifier: Apache-2.0
"""The programs that measure llama-cpp-python, on a small model and few tokens: they run, and say what they should."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: .ci/integrations/llama_cpp installs it")

from benchmarks import in_llama_cpp
from benchmarks.llamacpp import calibrate
from benchmarks.llamacpp.check import step_counts
from speckv.cost import CostTable
from speckv.profiling.prompts import EXAMPLES
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma


def models(weights: Path) -> list[str]:
    file = str(weights / "smollm2-135m-instruct-q4_1.gguf")
    return ["--target", file, "--draft", file, "--context", "512", "--threads", "1"]


@pytest.mark.model
@pytest.mark.slow
def test_a_cost_table_is_measured_and_checked(weights_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    few = ["--reference-context", "32", "--far-context", "64", "--widths", "1", "2", "5", "--repeats", "2"]
    check = ["--warmups", "1", "--check-tokens", "6", "--check-gammas", "0", "3"]
    calibrate.main([*models(weights_dir), "--name", "tiny", "--out", str(out), *few, *check])
    table = CostTable.load(out)
    assert table.compressions == ("fp16",)
    entry = table.entry("fp16")
    assert entry.verify_widths == entry.draft_widths == (1, 2, 5)
    assert "llama.cpp" in entry.kernel
    fit = table.fit["fp16"]
    assert fit.runs == 3 * fit.prompts
    assert fit.tokens <= 5 * fit.runs
    assert 0 < table.controller_s < 1e-2


@pytest.mark.model
@pytest.mark.slow
def test_arms_are_compared(weights_dir: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "result.json", tmp_path / "mine.speckv"
    Policy.of(ConstantGamma(1), cost_ratio={"fp16": 0.3}, fallback={"fp16": 1}).save(folder)
    few = ["--per-task", "1", "--train-per-task", "1", "--tasks", "code", "--gammas", "0", "2"]
    more = ["--max-new-tokens", "6", "--policies", str(folder), "--lookup-policies", str(folder), "--lookup"]
    prompts = ["--prompts", str(EXAMPLES), "--train", str(EXAMPLES), "--out", str(out), "--p-min-kept"]
    in_llama_cpp.main([*models(weights_dir), *few, *more, *prompts])
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    gamma = result["best_constant"]["gamma"]
    assert set(result["best_constant"]["seconds_on_train_prompts"]) == {"0", "2"}
    assert {"plain", f"best constant, {gamma}", "p-min"} < set(result["arms"])
    assert len(result["arms"]) == 7
    for arm in result["arms"].values():
        assert arm["prompts_with_another_text"] == 0  # one thread, weights without a kernel for many rows
        assert arm["tokens"] == [6] * len(result["prompts"])
        assert arm["tokens_per_s_from_the_first_token_on"] > 0


def test_steps_are_counted_from_calls() -> None:
    assert step_counts([(10, 2), (13, 0), (14, 3), (16, 1)]) == ([2, 0, 3, 1], [0, 1, 2, 0], [10, 13, 14, 16])


def test_texts_are_compared_token_by_token() -> None:
    assert in_llama_cpp.first_difference([1, 2, 3], [1, 2, 4]) == 2
    assert in_llama_cpp.first_difference([1, 2, 3], [1, 2]) == 2
    assert in_llama_cpp.first_difference([1, 2], [1, 2]) is None
