# SPDX-License-Identifier: Apache-2.0
"""The numbers that serving libraries take: read back as each library reads them."""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from speckv.commands.export import TARGETS, ExportRequest
from speckv.errors import ConfigError
from speckv.export import CompiledTable, Source
from speckv.export import tables as written
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from tests.fakes_traces import make_cost_table, random_traces

TABLE = CompiledTable(gammas={1: 5, 4: 3, 16: 3, 32: 0}, loss={1: 0.031, 4: 0.0, 16: 0.0, 32: -0.01})
BY_BATCH: Mapping[str, Callable[..., list[Path]]] = {
    "vllm": written.write_vllm,
    "sglang": written.write_sglang,
}
WANTED = {1: 5, 2: 5, 3: 3, 10: 3, 24: 3, 25: 0, 32: 0}
"""Batch -> gamma of the nearest measured one, of the smaller where two are as near."""


def origin() -> written.Origin:
    policy = Policy.of(ConstantGamma(5), name="mine", trained_on={"target": "big", "draft": "small"})
    return written.Origin(policy=policy, compression="fp16", cost="a-clock", prompts=12)


def test_vllm_reads_ranges_without_a_gap(tmp_path: Path) -> None:
    written.write_vllm(TABLE, origin(), tmp_path)
    config = json.loads((tmp_path / "speculative_config.json").read_text())
    assert (config["method"], config["model"], config["num_speculative_tokens"]) == ("draft_model", "small", 5)
    spans = config["num_speculative_tokens_per_batch_size"]
    assert spans[0][0] == 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
    assert {b: next(g for low, high, g in spans if low <= b <= high) for b in WANTED} == WANTED


def test_sglang_takes_the_greatest_key_not_above_the_batch(tmp_path: Path) -> None:
    written.write_sglang(TABLE, origin(), tmp_path)
    config = json.loads((tmp_path / "adaptive.json").read_text())
    assert all(key.isdigit() for key in config)
    steps = {int(key): entry["candidate_steps"] for key, entry in config.items()}
    assert {b: steps[max(key for key in steps if key <= b)] for b in WANTED} == {b: [g] for b, g in WANTED.items()}


@pytest.mark.parametrize("name", BY_BATCH)
def test_every_folder_says_what_was_lost_and_whether_it_was_tried(name: str, tmp_path: Path) -> None:
    paths = BY_BATCH[name](TABLE, origin(), tmp_path)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    text = (tmp_path / "README.md").read_text()
    for said in ("`mine`", "3.1%", "12 test prompts", "`a-clock`", "Tested: "):
        assert said in text


@pytest.mark.parametrize("name", BY_BATCH)
def test_a_policy_that_drafts_nothing_is_not_written(name: str, tmp_path: Path) -> None:
    nothing = CompiledTable(gammas={1: 0}, loss={1: 0.0})
    with pytest.raises(ConfigError, match="without a draft"):
        BY_BATCH[name](nothing, origin(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BY_BATCH)
def test_the_command_compiles_and_writes(name: str, tmp_path: Path) -> None:
    traces = random_traces(num_prompts=8, seed=5)
    source = Source(folder=tmp_path, traces=traces, cost=make_cost_table())
    policy = Policy.of(ConstantGamma(3), cost_ratio={"fp16": 0.3})
    TARGETS[name](ExportRequest(source=source, policy=policy, compression="fp16"), tmp_path)
    assert "| 1 |" in (tmp_path / "README.md").read_text()
