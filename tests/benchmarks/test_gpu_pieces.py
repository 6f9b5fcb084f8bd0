# SPDX-License-Identifier: Apache-2.0
"""What the stages choose to do: in little time, before anything is timed, and of which files."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.arms import run_arms
from benchmarks.gpu import breakdown, calibration, lossless, throughput
from benchmarks.gpu.models import graphs, load, random_pair
from benchmarks.gpu.prompts import MEASURED, TUNING
from benchmarks.gpu.settings import ROOT, Settings
from benchmarks.gpu.tests import GpuTestsError, marked_files, run_pytest
from benchmarks.gpu.work import Work
from speckv.cost import CostTable
from speckv.decoding import Engine
from speckv.models import CausalModel, ModelPair, PairConfig
from tests.fakes import as_causal, tiny_qwen

TINY = Settings(device="cpu", tiny=True)
LONG, SHORT = Settings(), Settings(short=True)


class Listed(Work):
    """Notes the pieces and runs none."""

    def __init__(self) -> None:
        super().__init__(None, 60)
        self.calls: dict[str, Callable[[], Any]] = {}

    def piece(self, name: str, call: Callable[[], Any]) -> None:
        self.calls[name] = call


def pieces(run: Callable[[Settings, Work], None], settings: Settings) -> list[str]:
    work = Listed()
    run(settings, work)
    return list(work.calls)


# -- order, and what a short run leaves out ----------------------------------------------------------------------------


def test_what_matters_most_is_checked_first() -> None:
    assert pieces(lossless.run, LONG) == ["float32", "bfloat16", "float16", "nf4", "int8"]
    assert pieces(lossless.run, SHORT) == ["float32", "bfloat16", "nf4", "int8"]
    counts = [len(lossless.chosen_prompts(settings, c)) for settings in (LONG, SHORT) for c in ("fp16", "nf4", "int8")]
    assert counts == [4, 4, 4, 2, 2, 1]


def test_tables_are_measured_in_the_order_of_their_use() -> None:
    def asked(settings: Settings) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        return {key: (job.compressions, job.batches) for key, job in calibration.jobs(settings).items()}

    every, few = (1, 4, 16), (1,)
    assert list(asked(LONG).items()) == [
        ("llama-8b-own-layers", (("fp16", "nf4"), every)),
        ("llama-8b-1b", (("fp16", "nf4", "int8"), every)),
        ("llama-8b-3b", (("fp16",), every)),
    ]
    assert list(asked(SHORT).items()) == [
        ("llama-8b-own-layers", (("fp16", "nf4"), few)),
        ("llama-8b-1b", (("fp16", "nf4"), (1, 16))),
        ("llama-8b-3b", (("fp16",), few)),
    ]


def test_real_weights_are_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PairConfig(target="t.gguf", draft="d.gguf")
    monkeypatch.setattr(calibration, "real_pair", lambda _: real)
    first = {s.short: next(iter(calibration.jobs(s).items())) for s in (LONG, SHORT)}
    assert first[False] == ("qwen2.5-coder", calibration.Job(real, ("fp16", "nf4", "int8"), (1, 4, 16)))
    assert first[True] == ("qwen2.5-coder", calibration.Job(real, ("fp16", "nf4"), (1,)))


def test_a_short_run_decodes_unquantised_and_takes_fewer_steps_apart() -> None:
    assert pieces(throughput.run, LONG) == ["fp16", "nf4"]
    assert pieces(throughput.run, SHORT) == ["fp16"]
    assert (breakdown.gammas(LONG), breakdown.gammas(SHORT)) == ((0, 4, 2, 8, 1), (0, 4, 2))


# -- calibration and throughput ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_grows_with_each_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_but_nf4(config: PairConfig) -> ModelPair:
        if config.compression == "nf4":
            raise RuntimeError("no kernel")
        return load(config)

    monkeypatch.setattr(calibration, "load", load_but_nf4)
    settings = replace(TINY, tables=str(tmp_path))
    job = calibration.Job(random_pair(TINY), ("fp16", "nf4"), (1, 2))
    with pytest.raises(RuntimeError, match="no kernel"):
        calibration.measure(settings, "pair", job)
    assert CostTable.load(tmp_path / "cost-cpu-pair.json").compressions == ("fp16",)


@pytest.mark.slow
def test_graphs_are_captured_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def capture(engine: Engine, longest: int) -> None:
        done.append(("plain" if engine.draft is None else "drafting", longest))

    def timed(*arguments: Any, **options: Any) -> Any:
        done.append(("timed", 0))
        return run_arms(*arguments, **options)

    monkeypatch.setattr(Engine, "capture_ahead", capture)
    monkeypatch.setattr(throughput, "run_arms", timed)
    found = throughput.measure(TINY, "fp16", lambda: False, lambda: False)
    used = [text for prompts in (TUNING, MEASURED) for text in list(prompts.values())[:2]]
    longest = max(len(text.encode()) for text in used) + 12
    assert done == [("drafting", longest), ("plain", longest), ("timed", 0), ("timed", 0)]
    assert (found["prompts"], found["prompts_planned"]) == (1, 2)


def test_a_pair_says_how_its_passes_ran() -> None:
    tiny = as_causal(tiny_qwen(0))

    def model(device: str = "cuda", **other: Any) -> CausalModel:
        return replace(tiny, **{"static": True, "device": torch.device(device), **other})

    def told(target: CausalModel) -> str:
        pair: Any = SimpleNamespace(target=target, draft=model())
        assert graphs(pair)["draft"] == "captured"
        return graphs(pair)["target"]

    assert told(model(graph_faults=[])) == "captured"
    assert told(model(graph_faults=["out of memory", "no stream"])) == "out of memory; no stream"
    by_kernel = [model("cpu"), model(static=False), model(captures_graphs=False)]
    assert list(map(told, by_kernel)) == ["kernel by kernel"] * 3


# -- tests and weights -------------------------------------------------------------------------------------------------


def test_only_files_with_marked_tests_are_collected(tmp_path: Path) -> None:
    texts = {
        "test_marked": "@pytest.mark.gpu\ndef test_a(): ...\n",
        "test_inside": "class TestA:\n    @pytest.mark.gpu\n    def test_a(self): ...\n",
        "test_all": "pytestmark = [pytest.mark.slow, pytest.mark.gpu]\n",
        "test_other": "@pytest.mark.gpus\ndef test_a(): '@pytest.mark.gpu'\n",
        "helper": "@pytest.mark.gpu\n",
    }
    (tmp_path / "deep").mkdir()
    for name, text in texts.items():
        (tmp_path / "deep" / f"{name}.py").write_text(text, encoding="utf-8")
    marked = [str(tmp_path / "deep" / f"{name}.py") for name in ("test_all", "test_inside", "test_marked")]
    assert marked_files([str(tmp_path), "tests/test_house.py"]) == [*marked, "tests/test_house.py"]
    with pytest.raises(GpuTestsError, match=r"marked gpu in .*benchmarks/results, found none"):
        run_pytest(Settings(device="cpu", tests=("benchmarks/results",)), 60)


def test_no_file_of_ours_marks_its_tests_in_a_way_that_is_overlooked() -> None:
    found = set(marked_files(["tests"]))
    assert "tests/benchmarks/test_on_gpu.py" in found
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    overlooked = {str(path.relative_to(ROOT)) for path in files} - found
    assert overlooked == {f"tests/benchmarks/test_{name}.py" for name in ("gpu", "gpu_pieces")}  # marks in texts


@pytest.mark.slow
def test_a_test_that_hangs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test_slow.py"
    path.write_text(
        "import time, pytest\n\n@pytest.mark.gpu\ndef test_hangs():\n    time.sleep(60)\n", encoding="utf-8"
    )
    with pytest.raises(GpuTestsError, match=r"(?s)within 10 s, it did not; its output ends with: .*::test_hangs"):
        run_pytest(Settings(device="cpu", tests=(str(path),)), 10)


def test_without_a_folder_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from benchmarks.gpu.settings import Settings; from benchmarks.gpu.worker import run_stage; "
        "print(run_stage('benchmarks.gpu.weights:run', Settings(), None, 60.0)['status'], "
        "*{'torch', 'transformers'} & sys.modules.keys())"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["ok"]
