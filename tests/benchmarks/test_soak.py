# SPDX-License-Identifier: Apache-2.0
"""The soak test finds what it is for: an engine that diverges, one that leaks; and it passes one that does neither.

Time is counted in requests here, so that nothing depends on how fast the machine is.
"""

import itertools
import json
import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.soak import __main__ as program
from benchmarks.soak.memory import Trend, Watch, resident_bytes, trend
from benchmarks.soak.run import MOST_DIVERGENCES, soak
from benchmarks.soak.traffic import KINDS, Traffic
from speckv.decoding import DecodeStep, Engine, SamplingConfig
from speckv.decoding.engine import GoOn
from tests.fakes import TableModel, TableSequence

PROMPTS = {"a": [1, 2], "b": [3], "c": [5, 6, 0]}
MODES = ("greedy", "gumbel")


class DivergingEngine(Engine):
    """Gets one token in fifty wrong."""

    verified = 0

    def step(self, gamma: int, go_on: GoOn | None = None) -> DecodeStep:
        step = super().step(gamma, go_on)
        self.verified += 1
        if self.verified % 50 == 0:
            assert self._request is not None
            self._request.context[-1] = (self._request.context[-1] + 1) % self.target.vocab_size
            return replace(step, tokens=(*step.tokens[:-1], self._request.context[-1]))
        return step


class LeakyModel(TableModel):
    """Keeps every sequence it ever started, as an engine would that never lets go of its caches."""

    kept: list[TableSequence]

    def sequence(self) -> TableSequence:
        self.kept = [*getattr(self, "kept", []), super().sequence()]
        return self.kept[-1]


class FatModel(TableModel):
    """Keeps nothing but bytes: two megabytes a sequence, of pages that nothing before has freed."""

    kept: list[mmap.mmap]

    def sequence(self) -> TableSequence:
        pages = mmap.mmap(-1, 2_000_000)
        pages.write(b"\1" * len(pages))
        self.kept = [*getattr(self, "kept", []), pages]
        return super().sequence()


def run(
    *,
    engine: Callable[..., Engine] = Engine,
    model: type[TableModel] = TableModel,
    requests: int = 60,
    prompts: dict[str, list[int]] | None = None,
) -> tuple[dict[str, Any], Traffic]:
    table = TableModel.random(0)
    target, draft = model(table.table), table.perturbed(1, 1.0)
    traffic = Traffic(
        {mode: engine(target, draft, sampling=SamplingConfig(mode=mode)) for mode in MODES},
        {mode: Engine(table, None, sampling=SamplingConfig(mode=mode)) for mode in MODES},
        prompts or PROMPTS,
        np.random.default_rng(0),
        max_new_tokens=24,
    )
    ticks = itertools.count()
    watch = Watch((TableSequence,), torch.device("cpu"))
    report = soak(traffic, watch, seconds=requests, sample_s=requests / 8, clock=lambda: float(next(ticks)))
    return report, traffic


@pytest.mark.slow
def test_an_engine_that_does_neither_passes() -> None:
    report, traffic = run()
    assert report["verdict"] == "ok"
    assert set(report["requests"]) == set(KINDS)
    assert min(report["requests"].values()) > 3
    assert report["checked_tokens"] > 300
    assert traffic.counts == {"near_ties": 0, "divergences": 0}
    assert len(report["memory"]["samples"]) >= 6


@pytest.mark.slow
def test_a_diverging_engine_is_caught_and_the_run_ends() -> None:
    report, traffic = run(engine=DivergingEngine, requests=100_000)
    assert "divergence" in report["verdict"]
    assert MOST_DIVERGENCES <= traffic.counts["divergences"] < MOST_DIVERGENCES + 10
    first = report["divergences"][0]
    assert first["mode"] in MODES
    assert first["prompt"] in PROMPTS
    assert first["other"] == (first["plain"] + 1) % 7
    assert first["gap_roundings"] > 64


@pytest.mark.slow
def test_an_engine_that_keeps_its_caches_is_caught() -> None:
    report, _ = run(model=LeakyModel)
    assert report["verdict"] == "leaked sequences"
    assert report["sequences"]["most"] > 50


@pytest.mark.slow
def test_an_engine_that_grows_is_caught() -> None:
    report, _ = run(model=FatModel)
    assert report["verdict"] == "growth of resident memory"
    assert report["memory"]["trends"]["resident"]["rise_mb"] > 50


def test_near_ties_are_counted_apart() -> None:
    tie = TableModel(torch.zeros(3, 3, 3))
    flipped = TableModel(torch.zeros(3, 3, 3))
    flipped.table[..., 2] = 1e-9
    traffic = Traffic(
        {"greedy": Engine(flipped, tie)}, {"greedy": Engine(tie, None)}, {"a": [0]}, np.random.default_rng(0)
    )
    traffic.request("greedy", "whole")
    assert traffic.counts == {"near_ties": 1, "divergences": 0}
    assert traffic.near_ties[0]["gap"] == 0


def test_growth_must_be_sure_and_more_than_unrest() -> None:
    minutes = [60.0 * i for i in range(31)]
    noise = np.random.default_rng(0).normal(0, 2e6, 31)
    flat = trend(minutes, (4e8 + noise).astype(int).tolist())
    growing = trend(minutes, (4e8 + 1e6 * np.arange(31) + noise).astype(int).tolist())
    assert growing.slope_mb_per_hour == pytest.approx(60, abs=3 * growing.standard_error_mb_per_hour)
    assert (flat.grows(20, 8), growing.grows(20, 8)) == (False, True)
    assert not growing.grows(20, 40)  # a rise of 24 MB
    warm = trend(minutes, [0] * 6 + [10**8] * 25)  # what an allocator fills at the start is left out
    assert warm.samples == 25
    assert warm.slope_mb_per_hour == pytest.approx(0)
    few = Trend(slope_mb_per_hour=1e6, standard_error_mb_per_hour=0, rise_mb=100, samples=4)
    assert not few.grows(20, 8)


def test_resident_bytes_follow_what_is_held() -> None:
    before = resident_bytes()
    held = b"\1" * 64_000_000
    assert resident_bytes() - before > 0.9 * len(held)


@pytest.mark.slow
def test_the_program_on_tiny_random_models(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    assert program.main(["--minutes", "0.02", "--max-new-tokens", "6", "--out", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["verdict"], report["target"], report["dtype"]) == ("ok", "random:tiny-target", "float32")
    assert report["num_divergences"] == 0
    assert isinstance(report["slope_mb_per_hour"], float)
    assert report["memory"]["samples"]
