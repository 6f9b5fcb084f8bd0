# SPDX-License-Identifier: Apache-2.0
"""A policy in the place of SGLang's own: what is promised to SGLang, and SGLang's own files where they are at hand.

`make integrations-sglang` fetches them; SPECKV_SGLANG names the folder.
"""

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from speckv.errors import ConfigError
from speckv.export.compiled import CompiledTable
from speckv.export.tables import Origin, write_sglang
from speckv.integrations import sglang
from speckv.integrations.environment import POLICY
from speckv.integrations.sglang import SpecKVSpeculativeParams
from speckv.runtime import Policy
from speckv.runtime.constant import ConstantGamma
from tests.fakes_vllm import PLACE, TYPICAL, Script

METHODS = ("set_cuda_graph_bs", "get_steps_for_batch", "on_verify_complete", "cuda_graph_bs_for_step")


def make(script: Script, steps: dict[str, Sequence[int]] | None = None, folder: Path | None = None) -> Any:
    path = None
    if steps is not None:
        assert folder is not None
        path = folder / "config.json"
        path.write_text(json.dumps({key: {"candidate_steps": value} for key, value in steps.items()}))
    return SpecKVSpeculativeParams(3, str(path) if path else None, policy=Policy.of(script))


def test_steps_are_the_nearest_prepared_ones_and_outcomes_are_told() -> None:
    params = make(script := Script([8, 4, 0]))
    assert params.candidate_steps == [0, 1, 3, 5, 7]
    assert params.get_steps_for_batch(2) == 7
    # 4 lies between 3 and 5: the cheaper one.
    assert params.on_verify_complete([3, 4, 4], 2) == 3
    assert params.on_verify_complete([9, 9], 2) == 0
    assert params.on_verify_complete([0, 0], 2) == 7
    assert params.on_verify_complete([], 2) is None
    (played,) = script.played
    assert (played.drafted, played.accepted) == ([7, 3, 0], [4, 3, 0])


def test_where_a_text_ends_is_not_told_so_the_policy_sees_what_is_typical() -> None:
    params = SpecKVSpeculativeParams(3, policy=Policy.of(script := Script([5]), typical=TYPICAL))
    for _ in range(200):
        params.get_steps_for_batch(1)
        params.on_verify_complete([5], 1)
    (played,) = script.played
    assert len(played.seen) == 201
    for seen in played.seen:
        np.testing.assert_array_equal(seen[PLACE], TYPICAL[PLACE])


def test_no_news_is_none() -> None:
    params = make(Script([3]))
    assert params.get_steps_for_batch(1) == 3
    assert params.on_verify_complete([1], 1) is None


def test_batches_have_steps_and_memories_of_their_own(tmp_path: Path) -> None:
    params = make(script := Script([5, 1]), {"1": [0, 5], "8": [1], "about": [9]}, tmp_path)
    assert params.candidate_steps == [0, 1, 5]
    assert params.cuda_graph_bs_for_step(5) is None
    params.set_cuda_graph_bs([8, 1, 4])
    assert params.cuda_graph_bs_for_step(5) == [1, 4]
    assert params.cuda_graph_bs_for_step(1) == [8]
    assert params.get_steps_for_batch(3) == 5
    # Both are padded to 4, so they share a memory.
    assert params.on_verify_complete([0, 0], 2) == 0
    assert params.get_steps_for_batch(4) == 0
    assert params.get_steps_for_batch(100) == 1
    assert len(script.played) == 2


def test_an_exported_table_is_what_it_reads(tmp_path: Path) -> None:
    policy = Policy.of(ConstantGamma(4))
    origin = Origin(policy=policy, compression="fp16", cost="none", prompts=1)
    write_sglang(CompiledTable(gammas={1: 4, 8: 2}, loss={1: 0.0, 8: 0.0}), origin, tmp_path)
    params = SpecKVSpeculativeParams(3, str(tmp_path / "adaptive.json"), policy=policy)
    assert params.candidate_steps == [2, 4]


def test_a_stored_policy_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=POLICY):
        SpecKVSpeculativeParams(3)
    Policy.of(ConstantGamma(5)).save(tmp_path / "five.speckv")
    monkeypatch.setenv(POLICY, str(tmp_path / "five.speckv"))
    assert SpecKVSpeculativeParams(initial_steps=2).get_steps_for_batch(1) == 5


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": {"candidate_steps": [1]}}', '{"1": {}}', '{"1": {"candidate_steps": [-1]}}']
)
def test_a_file_that_names_no_steps_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        SpecKVSpeculativeParams(3, str(tmp_path / "config.json"), policy=Policy.of(Script([1])))


def test_a_learner_is_refused() -> None:
    class Learns(Script):
        learns = True

    with pytest.raises(ConfigError, match="--frozen"):
        make(Learns([1]))


def test_the_plugin_registers_only_where_a_policy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[Any, ...]] = []
    module = ModuleType("sglang.srt.plugins.hook_registry")
    module.HookRegistry = SimpleNamespace(register=lambda *hook: registered.append(hook))  # type: ignore[attr-defined]
    module.HookType = SimpleNamespace(REPLACE="replace")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", module)
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sglang.register()
    assert registered == []
    monkeypatch.setenv(POLICY, "anywhere")
    sglang.register()
    assert registered == [(sglang.REPLACED, SpecKVSpeculativeParams, "replace")]


# -- against SGLang's own files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Path:
    folder = os.environ.get("SPECKV_SGLANG")
    if not folder:
        pytest.skip("needs SPECKV_SGLANG, the folder of an unpacked wheel of sglang 0.5.23 (make integrations-sglang)")
    return Path(folder) / "sglang" / "srt"


@pytest.fixture(scope="module")
def runtime(source: Path) -> ModuleType:
    """The one file that holds the protocol and the controller; it imports nothing but the standard library."""
    spec = importlib.util.spec_from_file_location(
        "adaptive_runtime_state", source / "speculative" / "adaptive_runtime_state.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Worker:
    """Notes which states it is told to run with."""

    speculative_num_steps = 3

    def __init__(self) -> None:
        self.built: list[tuple[int, Any]] = []

    def build_adaptive_runtime_state(
        self, speculative_num_steps: int, speculative_num_draft_tokens: int, cuda_graph_bs: list[int] | None = None
    ) -> Any:
        assert speculative_num_draft_tokens == speculative_num_steps + 1
        self.built.append((speculative_num_steps, cuda_graph_bs))
        return speculative_num_steps

    def apply_runtime_state(self, state: int) -> None:
        self.speculative_num_steps = state


def test_the_protocol_is_met(runtime: ModuleType) -> None:
    protocol = runtime.AdaptiveSpecPolicy
    for method in METHODS:
        theirs, ours = (inspect.signature(getattr(owner, method)) for owner in (protocol, SpecKVSpeculativeParams))
        assert list(theirs.parameters) == list(ours.parameters)
    names = {name for name in vars(protocol) if not name.startswith("_")}
    assert names == {*METHODS, "candidate_steps"}


def test_sglangs_own_controller_is_driven(runtime: ModuleType, tmp_path: Path) -> None:
    params = make(Script([5, 0, 3, 1]), {"1": [0, 1, 3, 5]}, tmp_path)
    worker = Worker()
    controller = runtime.AdaptiveController(worker, params)
    controller.init_states([1, 2])
    assert worker.built == [(0, [1, 2]), (1, [1, 2]), (3, [1, 2]), (5, [1, 2])]
    ran = []
    for _ in range(5):
        controller.activate_step_by_batch(1)
        ran.append(worker.speculative_num_steps)
        controller.on_verify_complete([min(1, ran[-1])], 1)
    assert ran == [5, 0, 3, 1, 5]


def test_the_class_that_is_replaced_is_there_and_built_with_these_words(source: Path) -> None:
    text = (source / "speculative" / "adaptive_spec_params.py").read_text()
    assert f"class {sglang.REPLACED.rpartition('.')[2]}:" in text
    worker = (source / "speculative" / "eagle_worker_v2.py").read_text()
    call = worker.partition("AdaptiveSpeculativeParams(\n")[2].partition("\n                ),")[0]
    assert [line.strip().partition("=")[0] for line in call.splitlines()] == ["initial_steps", "cfg_path"]


def test_sglangs_hooks_put_ours_in_its_place(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its real registry, on a module of the same name as the one that its workers import from."""
    spec = importlib.util.spec_from_file_location(
        "sglang.srt.plugins.hook_registry", source / "plugins" / "hook_registry.py"
    )
    assert spec is not None
    assert spec.loader is not None
    registry = importlib.util.module_from_spec(spec)
    owner = ModuleType(sglang.REPLACED.rpartition(".")[0])
    theirs = type("AdaptiveSpeculativeParams", (), {})
    owner.AdaptiveSpeculativeParams = theirs  # type: ignore[attr-defined]
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins", "sglang.srt.speculative"):
        monkeypatch.setitem(sys.modules, name, package := ModuleType(name))
        package.__path__ = []
    monkeypatch.setitem(sys.modules, spec.name, registry)
    monkeypatch.setitem(sys.modules, owner.__name__, owner)
    spec.loader.exec_module(registry)
    monkeypatch.setenv(POLICY, str(tmp_path))
    sglang.register()
    registry.HookRegistry.apply_hooks()
    assert owner.AdaptiveSpeculativeParams is SpecKVSpeculativeParams


def test_a_policy_that_learns_times_keeps_those_of_each_batch_size_apart() -> None:
    policy = Policy.load("shipped")
    params = SpecKVSpeculativeParams(3, policy=policy)
    params.set_cuda_graph_bs([1, 8])
    for batch in (1, 8):
        assert params.get_steps_for_batch(batch) > 0
    for _ in range(5):
        params.on_verify_complete([2], 1)
    controllers: list[Any] = [slot._session._controller for slot in params._slots.values()]
    learned = [controller._learner.times.live[0] for controller in controllers]
    assert [live.drafts.ever + live.plain.ever > 0 for live in learned] == [True, False]
    assert not any(live.by_passes for live in learned)
