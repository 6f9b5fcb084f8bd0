# SPDX-License-Identifier: Apache-2.0
"""The GPU day's command, rehearsed on a processor: every stage at tiny shapes, and what a failing one leaves behind."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks import qwen, weights
from benchmarks.divergence import explain
from benchmarks.gpu import __main__ as program
from benchmarks.gpu.models import RANDOM, load_random, random_model, random_pair, real_pair
from benchmarks.gpu.process import in_process, isolated
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stages import STAGES, Stage, chosen, run_all
from benchmarks.gpu.tests import GpuTestsError, read_summary, run_pytest
from benchmarks.gpu.work import Work
from speckv.cost import CostTable
from speckv.decoding import SamplingConfig
from speckv.errors import ConfigError
from speckv.models import CausalModel, PairConfig, load_pair
from speckv.models.compression import get_compression
from speckv.models.pair import freeze
from tests.fakes import TableModel

TINY = Settings(device="cpu", tiny=True)


def found(report: dict[str, Any], stage: str, piece: str) -> Any:
    return report["stages"][stage]["pieces"][piece]["found"]


@pytest.mark.slow
def test_the_whole_command_at_tiny_shapes(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["--device", "cpu", "--tiny", "--one-process", "--out", str(out)]
    status = program.main([*arguments, "--tests", "tests/benchmarks/test_on_gpu.py"])
    report = json.loads(out.read_text(encoding="utf-8"))
    assert {name: stage["status"] for name, stage in report["stages"].items()} == {s.name: "ok" for s in STAGES}
    assert status == 0
    for piece in report["stages"]["lossless"]["pieces"].values():
        for mode in ("greedy", "gumbel"):
            assert piece["found"][mode]["texts"] == 4
            assert 0 < piece["found"][mode]["accepted"] < piece["found"][mode]["drafted"]
    exact = found(report, "lossless", "float32")
    assert (exact["greedy"]["identical"], exact["gumbel"]["identical"]) == (4, 4)
    tables = {path.name for path in tmp_path.glob("cost-cpu-*.json")}
    assert tables == {f"cost-cpu-llama-8b-{draft}.json" for draft in ("own-layers", "1b")}
    assert CostTable.load(tmp_path / "cost-cpu-llama-8b-1b.json").compressions == ("fp16", "nf4", "int8")
    assert CostTable.load(tmp_path / "cost-cpu-llama-8b-own-layers.json").compressions == ("fp16", "nf4")
    for compression in ("fp16", "nf4"):
        assert found(report, "throughput", compression)["cost_table"] == "cost-cpu-llama-8b-own-layers"
    live = found(report, "throughput", "fp16")
    assert {arm["prompts_with_another_text"] for arm in live["arms"].values()} == {0}
    assert {"transformers", "ours, plain", "transformers, assisted, default"} < live["arms"].keys()
    assert found(report, "breakdown", "gamma 2")["draft"] > 0
    by_kernel = {"target": "kernel by kernel", "draft": "kernel by kernel"}
    for stage, piece in (("lossless", "nf4"), ("throughput", "fp16"), ("breakdown", "gamma 2")):
        assert found(report, stage, piece)["graphs"] == by_kernel
    assert str(Path.home()) not in out.read_text(encoding="utf-8")


# -- stages: failures, the clock, and what is kept ---------------------------------------------------------------------


def one_stage(name: str, *, budget_s: float = 60.0) -> Stage:
    return Stage(name=name, what="a test's", function=f"tests.fakes_stages:{name}", budget_s=budget_s)


def test_a_failing_stage_is_recorded_and_the_next_goes_on(tmp_path: Path) -> None:
    stages = [one_stage(name) for name in ("raises", "absent", "half", "fine")]
    run_all(stages, TINY, tmp_path / "r.json", runner=in_process, command="test")
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["stages"]
    assert [found[stage.name]["status"] for stage in stages] == ["error", "error", "error", "ok"]
    assert found["raises"]["error"] == "ValueError: no kernel"
    assert found["half"]["pieces"]["good"]["found"] == 1
    assert found["half"]["pieces"]["bad"]["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert found["half"]["pieces"]["after"]["status"] == "ok"


def test_stages_that_are_not_asked_for_keep_what_was_found(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    run_all([one_stage("fine"), one_stage("raises")], TINY, out, runner=in_process, command="first")
    report, _, _ = run_all([one_stage("raises")], TINY, out, runner=in_process, command="second")
    assert {name: stage["command"] for name, stage in report["stages"].items()} == {"fine": "first", "raises": "second"}


@pytest.mark.slow
def test_a_process_that_hangs_or_dies_ends_its_stage_alone(tmp_path: Path) -> None:
    stages = [one_stage("hangs", budget_s=4.0), one_stage("dies"), one_stage("fine")]
    started = time.monotonic()
    report, _, _ = run_all(stages, TINY, tmp_path / "r.json", runner=isolated, command="test")
    assert time.monotonic() - started < 60
    hung, died, fine = (report["stages"][stage.name] for stage in stages)
    assert hung["status"] == "error"
    assert hung["error"] == "ended by the clock after 4 s"
    assert hung["pieces"]["first"] == {"status": "ok", "found": "kept", "seconds": pytest.approx(0, abs=1)}
    assert hung["pieces"]["second"]["status"] == "error"
    assert (died["status"], died["error"]) == ("error", "its process ended with code 7")
    assert fine["status"] == "ok"


def test_pieces_behind_the_budget_are_skipped() -> None:
    now = [0.0]
    work = Work(None, 10.0, clock=lambda: now[0])
    in_time = work.share(2)
    work.piece("long", lambda: now.__setitem__(0, 11.0))
    work.piece("late", lambda: pytest.fail("ran"))
    assert not in_time()
    entry = work.finish()
    assert (entry["status"], entry["pieces"]["late"]["status"]) == ("partial", "skipped")


def test_the_report_is_named_after_the_device(tmp_path: Path) -> None:
    names = ["lossless"]
    assert [stage.name for stage in chosen(names, named_by_device=False, weights=False)] == names
    assert [stage.name for stage in chosen(names, named_by_device=True, weights=False)] == ["machine", "lossless"]
    device = {"status": "ok", "found": {"name": "NVIDIA H200"}}
    report = {"device": "cuda", "stages": {"machine": {"pieces": {"device": device}}}}
    assert program.default_out(report).name == "gpu-h200.json"
    assert program.default_out({"device": "cuda", "stages": {"machine": {"status": "error"}}}).name == "gpu-cuda.json"
    assert real_pair(Settings(weights=str(tmp_path))) is None
    for path in qwen.files(tmp_path):
        path.touch()
    found = real_pair(Settings(weights=str(tmp_path)))
    assert found is not None
    assert (found.device, found.target) == ("cuda", str(qwen.files(tmp_path)[0]))


# -- the stage of tests ------------------------------------------------------------------------------------------------


def test_pytests_summary_is_read() -> None:
    text = "..F\nFAILED tests/a.py::test_b - assert 1 == 2\nSKIPPED [1] tests/c.py:3: no\n1 failed, 2 passed in 0.1s\n"
    assert read_summary(text) == {
        "summary": "1 failed, 2 passed in 0.1s",
        "failures": ["FAILED tests/a.py::test_b - assert 1 == 2"],
        "skipped": ["SKIPPED [1] tests/c.py:3: no"],
    }


@pytest.mark.slow
def test_failing_and_absent_gpu_tests_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "test_bad.py"
    bad.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_bad():\n    assert 1 == 2\n")
    with pytest.raises(GpuTestsError, match="1 failed"):
        run_pytest(Settings(device="cpu", tests=(str(bad),)), 60)
    outcome = subprocess.CompletedProcess([], returncode=5, stdout="9 deselected in 0.1s\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: outcome)
    with pytest.raises(GpuTestsError, match=r"marked gpu .* found none"):
        run_pytest(Settings(device="cpu"), 60)
    outcome.returncode, outcome.stdout = 0, "6 skipped in 0.1s\n"
    with pytest.raises(GpuTestsError, match=r"some test to pass on cuda, got: 6 skipped"):
        run_pytest(Settings(device="cuda"), 60)


# -- random models -----------------------------------------------------------------------------------------------------


def logits_of(model: CausalModel | PreTrainedModel) -> torch.Tensor:
    hf = model.hf if isinstance(model, CausalModel) else model
    with torch.inference_mode():
        output: torch.Tensor = hf(torch.arange(5)[None]).logits
    return output


@pytest.mark.parametrize("compression", ["int8", "nf4"])
def test_a_random_model_is_compressed_as_its_saved_weights_would_be(compression: str, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    plain = random_model("tiny-draft", dtype=torch.float32, device=cpu)
    ours = random_model("tiny-draft", dtype=torch.float32, device=cpu, compression=compression)
    plain.hf.save_pretrained(tmp_path)
    config = get_compression(compression, cpu).quantization_config
    assert config is not None
    theirs = LlamaForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=config(torch.float32), device_map={"": cpu}
    )
    pairs = zip(ours.hf.named_parameters(), theirs.named_parameters(), strict=True)
    assert [a for (a, x), (b, y) in pairs if a != b or type(x) is not type(y) or not torch.equal(x.data, y.data)] == []
    torch.testing.assert_close(logits_of(ours), logits_of(freeze(theirs)))  # memory is aligned otherwise: last bits
    assert (logits_of(ours) - logits_of(plain)).abs().max() > 1e-3


def test_prompts_of_random_pairs_are_bytes() -> None:
    pair = load_random(random_pair(TINY))
    assert pair.encode("Hi, ä!") == list("Hi, ä!".encode())


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Expected a shape of .*llama-3\.1-8b"):
        random_model(RANDOM + "llama", dtype=torch.float32, device=torch.device("cpu"))


# -- near-ties ---------------------------------------------------------------------------------------------------------


def test_a_difference_shows_how_sure_the_target_was() -> None:
    table = torch.zeros(3, 3, 3)
    table[..., 1], table[..., 2] = 4.0, 1.5
    where = explain(TableModel(table), [0], [1, 1, 1], [1, 2, 2])
    assert where is not None
    assert (where.position, where.plain, where.other, where.gap) == (1, 1, 2, 2.5)
    assert where.gap_roundings == pytest.approx(2.5 / (4.0 * torch.finfo(torch.float32).eps))
    assert explain(TableModel(table), [0], [1, 1], [1, 1]) is None
    end = explain(TableModel(table), [0], [1, 1], [1])
    assert end is not None
    assert (end.position, end.plain, end.other) == (1, 1, None)


def test_the_gap_of_sampled_text_includes_the_noise() -> None:
    table = torch.zeros(3, 3, 3)
    sampling = SamplingConfig(mode="gumbel", seed=3)
    where = explain(TableModel(table), [0], [1], [2], sampling=sampling, request="r")
    assert where is not None
    assert where.gap > 0


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_real_weights_arrive_in_parts_and_load(weights_dir: Path, tmp_path: Path) -> None:
    name = "smollm2-135m-instruct-q4_1.gguf"
    weights.split([weights_dir / name], tmp_path / "parts")
    (path,) = weights.join(tmp_path / "parts", tmp_path / "whole")
    assert path.stat().st_size == (weights_dir / name).stat().st_size
    pair = load_pair(PairConfig(target=str(path), draft="self", draft_layers=4, dtype="float32", device="cpu"))
    assert pair.encode("Hello")
