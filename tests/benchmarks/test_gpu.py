# SPDX-License-Identifier: Apache-2.0
"""`make gpu` rehearsed on a CPU at tiny shapes: every stage, and what remains of one that fails or is stopped."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks import qwen, weights
from benchmarks.divergence import explain
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import checks, measure
from benchmarks.gpu.models import RANDOM, load_random, random_model, random_pair, real_pair
from benchmarks.gpu.stage import ROOT, STAGES, Settings, Stage, run_pieces
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
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), "--tests", "tests/benchmarks/test_on_gpu.py"]
    status = program.main(arguments)
    text = out.read_text(encoding="utf-8")
    report = json.loads(text)
    assert {name: stage["status"] for name, stage in report["stages"].items()} == dict.fromkeys(STAGES, "ok"), text
    assert status == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json",
        "cost-cpu-llama-8b-own-layers.json",
        "cost-cpu-llama-8b-1b.json",
    }
    for piece in report["stages"]["lossless"]["pieces"].values():
        for mode in ("greedy", "gumbel"):
            assert piece["found"][mode]["texts"] == 4
            assert 0 < piece["found"][mode]["accepted"] < piece["found"][mode]["drafted"]
    exact = found(report, "lossless", "float32")
    assert (exact["greedy"]["identical"], exact["gumbel"]["identical"]) == (4, 4)
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
    assert not [place for place in (str(ROOT), str(tmp_path), str(Path.home())) if f"{place}/" in text]


# -- processes and the report ------------------------------------------------------------------------------------------


def test_pieces_are_guarded_one_by_one(tmp_path: Path) -> None:
    def warn(_: float) -> int:
        for _ in range(2):
            logging.getLogger("speckv.test").warning("odd %d", 1)
        return 1

    file = tmp_path / "part.json"
    run_pieces({"good": warn, "bad": lambda _: 1 // 0, "after": lambda _: 2}, file, 60)
    entry = json.loads(file.read_text(encoding="utf-8"))
    assert [piece["status"] for piece in entry["pieces"].values()] == ["ok", "error", "ok"]
    assert entry["pieces"]["bad"]["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert entry["warnings"] == ["speckv.test: odd 1"]
    run_pieces({"late": lambda _: pytest.fail("ran")}, file, 0)
    assert json.loads(file.read_text(encoding="utf-8"))["pieces"]["late"]["status"] == "skipped"


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names = ["raises", "hangs", "dies", "fine"]
    monkeypatch.setattr(program, "STAGES", {n: Stage(1.0, f"tests.fakes_stages:{n}", "a test's") for n in names})
    return names


@pytest.mark.slow
def test_a_failing_stage_keeps_what_it_found_and_the_next_goes_on(tmp_path: Path, fake_stages: list[str]) -> None:
    out = tmp_path / "r.json"
    assert program.main(["--device", "cpu", "--tiny", "--out", str(out), "--minutes", "0.3"]) == 1
    stages = json.loads(out.read_text(encoding="utf-8"))["stages"]
    assert [stages[name]["status"] for name in fake_stages] == ["error", "error", "error", "ok"]
    assert stages["raises"]["log"][-1] == "ValueError: no kernel"
    assert "stopped at its limit" in stages["hangs"]["error"]
    assert stages["hangs"]["pieces"]["first"]["found"] == "kept"
    assert "stopped at its limit" in stages["hangs"]["pieces"]["second"]["error"]
    assert stages["dies"]["error"] == "its process ended with status 7"
    assert list(tmp_path.iterdir()) == [out]
    assert program.main(["--device", "cpu", "--tiny", "--out", str(out), "--stages", "fine"]) == 0
    again = json.loads(out.read_text(encoding="utf-8"))["stages"]
    assert again["hangs"] == stages["hangs"]  # what earlier runs found stays
    assert again["fine"]["command"].endswith("--stages fine")


@pytest.mark.slow
def test_a_run_that_is_terminated_keeps_what_the_stage_found(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    code = (
        "import runpy, sys; import benchmarks.gpu.stage as s; "
        "s.STAGES.clear(); s.STAGES['hangs'] = s.Stage(1.0, 'tests.fakes_stages:hangs', ''); "
        "runpy.run_module('benchmarks.gpu.__main__', run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", code, "--device", "cpu", "--out", str(out)], cwd=ROOT) as process:
        part = tmp_path / "r.hangs.part.json"
        end = time.monotonic() + 60
        while not (part.is_file() and "kept" in part.read_text(encoding="utf-8")):
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    hangs = json.loads(out.read_text(encoding="utf-8"))["stages"]["hangs"]
    assert (hangs["status"], hangs["error"]) == ("error", "interrupted")
    assert hangs["pieces"]["first"]["found"] == "kept"


def test_shares_of_the_stages_add_up_to_twenty_minutes() -> None:
    assert sum(stage.share_s for stage in STAGES.values()) == 20 * 60


# -- what the stages choose --------------------------------------------------------------------------------------------


def test_a_short_run_measures_what_matters_most() -> None:
    long, short = Settings(), Settings(short=True)
    assert list(measure.lossless(long)) == ["float32", "bfloat16", "float16", "nf4", "int8"]
    assert list(measure.lossless(short)) == ["float32", "bfloat16", "nf4", "int8"]
    every, few = (1, 4, 16), (1,)
    assert [(key, job.compressions, job.batches) for key, job in measure.jobs(long).items()] == [
        ("llama-8b-own-layers", ("fp16", "nf4"), every),
        ("llama-8b-1b", ("fp16", "nf4", "int8"), every),
        ("llama-8b-3b", ("fp16",), every),
    ]
    assert [(key, job.compressions, job.batches) for key, job in measure.jobs(short).items()] == [
        ("llama-8b-own-layers", ("fp16", "nf4"), few),
        ("llama-8b-1b", ("fp16", "nf4"), (1, 16)),
        ("llama-8b-3b", ("fp16",), few),
    ]
    assert (list(measure.throughput(long)), list(measure.throughput(short))) == (["fp16", "nf4"], ["fp16"])


def test_real_weights_are_measured_first(tmp_path: Path) -> None:
    settings = Settings(weights=str(tmp_path))
    assert real_pair(settings) is None
    for path in qwen.files(tmp_path):
        path.touch()
    pair = real_pair(settings)
    assert pair is not None
    assert (pair.device, pair.target) == ("cuda", str(qwen.files(tmp_path)[0]))
    assert next(iter(measure.jobs(settings).items())) == (
        "qwen2.5-coder",
        measure.Job(pair, ("fp16", "nf4", "int8"), (1, 4, 16)),
    )


# -- packages and tests ------------------------------------------------------------------------------------------------


def test_every_required_package_is_installed() -> None:
    assert {"torch", "transformers", "hypothesis"} <= checks.check_packages(checks.required()).keys()


def test_missing_and_outdated_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, version: str, *needs: str) -> None:
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n", encoding="utf-8")

    monkeypatch.syspath_prepend(tmp_path)
    install("transformers", "5.17.0", "middle")
    install("middle", "1", "no-such-runtime==4.9.*", "no-such-extra; extra == 'x'")
    install("torch", "2.9.0a0+nv25.1", "nvidia-no-such-cu13; python_version > '3'")
    with pytest.raises(ConfigError) as error:
        checks.check_packages(["torch>=2.6", "transformers>=5.23", "absent>=2"])
    assert (
        "got transformers>=5.23 (found 5.17.0); absent>=2 (missing); no-such-runtime==4.9.* (missing, needed by "
        in (str(error.value))
    )
    assert "nvidia" not in str(error.value)


@pytest.mark.slow
def test_failing_hanging_and_absent_gpu_tests_are_errors(tmp_path: Path) -> None:
    bad = tmp_path / "test_bad.py"
    bad.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_bad():\n    assert 1 == 2\n", encoding="utf-8")
    with pytest.raises(checks.GpuTestsError, match="assert 1 == 2"):
        checks.run_pytest(Settings(device="cpu", tests=[str(bad)]), 60)
    bad.write_text("import time, pytest\n\n@pytest.mark.gpu\ndef test_hangs():\n    time.sleep(60)\n", encoding="utf-8")
    with pytest.raises(checks.GpuTestsError, match=r"(?s)within 10 s, its output so far: .*::test_hangs"):
        checks.run_pytest(Settings(device="cpu", tests=[str(bad)]), 10)
    with pytest.raises(checks.GpuTestsError, match="got status 5"):
        checks.run_pytest(Settings(device="cpu", tests=["benchmarks/results"]), 60)


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
