# SPDX-License-Identifier: Apache-2.0
"""`speckv report` and `speckv vocabulary` on whole runs: what the page then says, and what is refused in one line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from speckv.agents.constants import FixedGamma
from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import CostSettings, DataSettings, EvaluateSettings
from speckv.commands import report
from speckv.commands.main import main
from speckv.cost import CostTable
from speckv.models.tokenizer import load_tokenizer, token_bytes, vocabulary_hash
from speckv.report.texts import Vocabulary
from speckv.traces import TraceSet
from tests.fakes import LETTERS, save_tiny, tiny_qwen
from tests.fakes_policies import store
from tests.fakes_report import toy_run
from tests.fakes_runs import TINY_PPO, CapturedConsole
from tests.fakes_settings import shipped


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A learner's run and a constant's, on the same recordings and clock."""
    folder = tmp_path_factory.mktemp("runs")
    learned = toy_run(folder, "learned", TINY_PPO)
    return learned, toy_run(folder, "constant", {"name": "fixed", "gamma": 3})


def content_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.mark.slow
def test_a_page_about_one_run_says_what_its_own_evaluation_says(runs: tuple[Path, Path]) -> None:
    learned, _ = runs
    assert main(["report", str(learned)]) == 0
    content = content_of(learned / "evaluation" / "report.html")
    assert content["comparison"] == json.loads((learned / "evaluation" / "results.json").read_text(encoding="utf-8"))
    (curve,) = content["curves"]
    steps = [step for step, *_ in curve["points"]["all"]]
    assert steps == sorted(set(steps))
    assert len(steps) >= 2
    assert set(curve["points"]) == {"fp16", "nf4", "all"}
    facts = dict(content["runs"][0]["facts"])
    assert (facts["Agent"], facts["Seed"], facts["Folder"]) == ("ppo", "0", "learned")
    assert "shown as numbers" in content["timeline"]["words"]
    assert content["timeline"]["players"] == ["best-fixed", "ppo", "clairvoyant"]


def test_several_runs_share_a_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), f"out={out}", "num_resamples=20", "prompts_per_task=1"]) == 0
    content = content_of(out)
    assert content["comparison"]["controllers"] == ["ppo", "agent fixed-3"]
    assert content["comparison"]["setting"]["num_resamples"] == 20
    assert content["without_curve"] == ["agent fixed-3"]
    assert len(content["timeline"]["sequences"]) == 3 * 2
    assert "the first of 2 controllers" in content["verdict"]


@pytest.mark.slow
def test_runs_that_differ_by_their_seed_are_judged_as_evaluate_judges_them(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """Seeds count as one controller on the page too, or its families would be others than the text table's."""
    home = runs[0].parent
    names = [str(runs[0]), str(change(runs[0], tmp_path / "other-seed", "seed: 0", "seed: 1"))]
    facts = json.loads((tmp_path / "other-seed" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "other-seed" / "run.json").write_text(json.dumps({**facts, "seed": 1}), encoding="utf-8")
    names.append(str(runs[1]))
    settings = shipped(
        EvaluateSettings,
        data=shipped(DataSettings, traces=str(home / "toy.parquet")),
        cost=shipped(CostSettings, table=str(home / "toy.json")),
        controllers=tuple(names),
        output=str(tmp_path / "evaluation"),
    )
    console = CapturedConsole()
    evaluate(settings, console)
    out = tmp_path / "page.html"
    assert main(["report", *names, f"out={out}", "prompts_per_task=1"]) == 0
    content = content_of(out)
    saved = tmp_path / "evaluation"
    assert content["comparison"] == json.loads((saved / "results.json").read_text(encoding="utf-8"))
    assert content["comparison"]["entrants"] == ["ppo (2 seeds)", "agent fixed-3"]
    table = " ".join((saved / "results.txt").read_text(encoding="utf-8").split())
    for where, lines in content["verdicts"]["parts"]:
        assert " ".join([where, *(said for _, said in lines)]) in table


def test_a_run_that_learned_on_another_clock_has_no_curve(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Its rows are seconds of that clock, which say nothing beside the best fixed gamma of this one."""
    config = (runs[0] / "config.yaml").read_text(encoding="utf-8")
    learn = re.search(r"^  cost: null$", config, re.MULTILINE)
    assert learn is not None
    other = change(runs[0], tmp_path / "other", "  cost: null", "  cost: cpu-2core")
    out = tmp_path / "page.html"
    assert main(["report", str(other), f"out={out}", "num_resamples=20", "prompts_per_task=1"]) == 0
    assert content_of(out)["curves"] == []
    assert content_of(out)["without_curve"] == ["ppo"]


def test_two_runs_of_one_name_are_told_apart_by_their_folders(runs: tuple[Path, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(runs[0], twin)
    out = tmp_path / "page.html"
    assert main(["report", str(runs[0]), str(twin), f"out={out}", "num_resamples=20", "prompts_per_task=1"]) == 0
    assert content_of(out)["comparison"]["controllers"] == ["learned", "twin"]


def test_a_policys_folder_is_judged_where_it_is_told(runs: tuple[Path, Path], tmp_path: Path) -> None:
    store(tmp_path / "rule", FixedGamma(2))
    home = runs[0].parent
    ground = ["cost=cpu-2core", f"cost.table={home / 'toy.json'}", "data=qwen2.5-coder"]
    ground.append(f"data.traces={home / 'toy.parquet'}")
    out = tmp_path / "page.html"
    # A run beside it is judged there too, and its curve, of another clock for all we know, is left out.
    assert main(["report", str(tmp_path / "rule"), str(runs[0]), f"out={out}", "num_resamples=20", *ground]) == 0
    content = content_of(out)
    assert content["comparison"]["controllers"] == ["agent fixed-2", "ppo"]
    assert content["curves"] == []


def change(run: Path, to: Path, old: str, new: str) -> Path:
    """A copy of a run with something else in its config or facts."""
    shutil.copytree(run, to)
    for name in ("config.yaml", "run.json"):
        text = (to / name).read_text(encoding="utf-8")
        (to / name).write_text(text.replace(old, new), encoding="utf-8")
    return to


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_runs_that_do_not_belong_together_are_refused(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned, constant = runs
    facts = json.loads((learned / "run.json").read_text(encoding="utf-8"))
    for number, (old, new, message) in enumerate(
        [
            (facts["cost"]["sha256"], "0" * 64, "got cost table sha256"),
            (facts["traces"]["sha256"], "0" * 64, "got recordings sha256"),
            ("compressions: null", "compressions: [fp16]", "got compressions None"),
            ("tasks: null", "tasks: [code]", "got tasks None"),
        ]
    ):
        other = change(constant, tmp_path / str(number), old, new)
        assert message in refused([str(learned), str(other)], capsys)


def test_a_clock_that_is_no_longer_the_runs_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((runs[0] / "run.json").read_text(encoding="utf-8"))
    before = change(runs[0], tmp_path / "before", facts["cost"]["sha256"], "0" * 64)
    assert "that " + str(before) + " was trained on" in refused([str(before)], capsys)


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("config.yaml", "a: [1"), ("config.yaml", "[1]")])
def test_a_damaged_folder_is_refused(
    name: str, text: str, runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(runs[0], damaged)
    (damaged / name).write_text(text, encoding="utf-8")
    assert f"{damaged}: expected" in refused([str(damaged)], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected run folders first"),
        (["out=x.html"], "Expected run folders first"),
        (["/no/such/run"], "a run folder or a policy's folder"),
        (["shipped"], "to name recordings and cost table"),
        (["{run}", "prompts_per_task=0"], "prompts_per_task of 1 or more"),
        (["{run}", "prompts=[none.jsonl]"], "found nothing"),
        (["{run}", "prompt_per_task=2"], "Did you mean 'prompts_per_task'"),
        (["{rule}"], "to name recordings and cost table"),
        (["{run}", "tokenizer=/no/such/folder"], "Expected a model folder"),
    ],
)
def test_one_clear_error(
    arguments: list[str],
    message: str,
    runs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store(tmp_path / "rule", FixedGamma(2))
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    named = [a.format(run=runs[0], rule=tmp_path / "rule") for a in arguments]
    assert message in refused(named, capsys)
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_a_page_that_would_be_too_large_shows_fewer_prompts_or_none(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    arguments = [str(runs[0]), f"out={out}", "num_resamples=20"]
    assert main(["report", *arguments, "prompts_per_task=3"]) == 0
    whole = out.stat().st_size
    monkeypatch.setattr(report, "MOST_BYTES", whole - 1)
    assert main(["report", *arguments, "prompts_per_task=3"]) == 0
    assert len(content_of(out)["timeline"]["sequences"]) == 3 * 2 * 2
    monkeypatch.setattr(report, "MOST_BYTES", 1000)
    assert "Show fewer than 1 runs" in refused(arguments, capsys)


@pytest.mark.slow
def test_texts_from_a_tokenizer_or_a_vocabulary_made_of_it(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model", tiny_qwen(0))
    tokenizer = load_tokenizer(str(model))
    assert token_bytes(tokenizer, [0, 3]) == {0: LETTERS[0].encode(), 3: LETTERS[3].encode()}
    home = runs[0].parent
    capsys.readouterr()  # how far saving the model had come
    assert "Expected the tokenizer that" in refused([str(runs[0]), f"tokenizer={model}"], capsys)
    traces = TraceSet.load(home / "toy.parquet")
    own = replace(traces, metadata=replace(traces.metadata, tokenizer_sha256=vocabulary_hash(tokenizer)))
    path = tmp_path / "own.parquet"
    own.save(path)
    words = tmp_path / "words.json"
    assert main(["vocabulary", f"tokenizer={model}", f"traces=[{path}]", f"out={words}"]) == 0
    vocabulary = Vocabulary.load(words)
    assert vocabulary.pieces[3] == LETTERS[3].encode()
    assert vocabulary.tokenizer_sha256 == own.metadata.tokenizer_sha256
    out = tmp_path / "page.html"
    ground = ["cost=cpu-2core", f"cost.table={home / 'toy.json'}", "data=qwen2.5-coder", f"data.traces={path}"]
    named = ["report", str(runs[0]), f"out={out}", "num_resamples=20", *ground]
    assert main([*named, f"tokenizer={model}"]) == 0
    from_tokenizer = content_of(out)["timeline"]
    assert from_tokenizer["words"] == "Texts from the tokenizer of model."
    assert main([*named, f"vocabulary={words}"]) == 0
    from_file = content_of(out)["timeline"]
    assert from_file["sequences"] == from_tokenizer["sequences"]
    assert from_file["words"] == "Texts from words.json."
    assert "Expected a vocabulary of" in refused([str(runs[0]), f"vocabulary={words}"], capsys)
    monkeypatch.setattr(report, "shipped_vocabulary", lambda sha256: vocabulary if sha256 else None)
    assert main(named) == 0
    shipped = content_of(out)["timeline"]
    assert shipped["sequences"] == from_tokenizer["sequences"]
    assert "comes with SpecKV" in shipped["words"]
    assert CostTable.load(home / "toy.json").name in content_of(out)["comparison"]["setting"]["cost"]
