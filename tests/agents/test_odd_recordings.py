# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation on unusual recordings: a right result, or one error before a run folder exists."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from speckv.agents.runs.evaluating import evaluate
from speckv.agents.runs.settings import CostSettings, DataSettings, EvaluateSettings, LearnSettings
from speckv.agents.runs.training import train
from speckv.errors import SpecKVError
from speckv.traces import TraceSequence
from tests.fakes_runs import CapturedConsole, easy_or_hard, toy_settings
from tests.fakes_settings import shipped
from tests.fakes_traces import make_traces

FIXED: dict[str, object] = {"name": "fixed", "gamma": 2}
SURVIVAL: dict[str, object] = {"name": "survival_stopping", "epochs": 1}


def recordings(keep: Callable[[TraceSequence], bool] = lambda _: True, **lengths: int) -> list[TraceSequence]:
    """24 prompts at two compressions; `nf4_test=1` and the like shorten the texts of a compression and split."""
    found = []
    for compression in ("fp16", "nf4"):
        for number in range(24):
            split = easy_or_hard(number, compression).split
            length = lengths.get(compression, lengths.get(f"{compression}_{split}", 40))
            found.append(easy_or_hard(number, compression, length=length))
    return [s for s in found if keep(s)]


def odd_names(sequence: TraceSequence) -> TraceSequence:
    return replace(sequence, prompt_id=f'提$\\示_{{"\r{sequence.prompt_id}\n2\u2028', task="_代$码$\u0007")


def run(tmp_path: Path, sequences: list[TraceSequence], agent: dict[str, object], learn: LearnSettings) -> Path:
    settings = replace(toy_settings(tmp_path, tmp_path / "run", agent=agent), learn=learn)
    make_traces(sequences, max_new_tokens=40).save(tmp_path / "toy.parquet")
    train(settings, CapturedConsole(), config="", overrides=[])
    return tmp_path / "run"


def refuse_nan(constant: str) -> None:
    raise AssertionError(constant)


@pytest.mark.parametrize(
    ("sequences", "compressions"),
    [
        (recordings(lambda s: s.compression == "fp16" or s.prompt_len < 21), ["fp16", "nf4"]),
        (recordings(lambda s: s.compression == "fp16" or s.prompt_len >= 17), ["fp16", "nf4"]),
        (recordings(lambda s: s.compression == "fp16" or s.split == "train"), ["fp16"]),
        (recordings(nf4_test=1), ["fp16"]),
        (recordings(nf4=1), ["fp16"]),
        (recordings(nf4=2), ["fp16", "nf4"]),
        (recordings(fp16=2, nf4=2), ["fp16", "nf4"]),
        ([odd_names(s) for s in recordings()], ["fp16", "nf4"]),
    ],
    ids=["fewer", "long prompts", "no test", "test of one token", "one token", "two tokens", "two everywhere", "names"],
)
def test_a_result_is_right(tmp_path: Path, sequences: list[TraceSequence], compressions: list[str]) -> None:
    folder = run(tmp_path, sequences, FIXED, shipped(LearnSettings))  # a warning is an error
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.json")]
    found = [json.loads(text, parse_constant=refuse_nan) for text in texts]
    (result,) = (content for content in found if "gamma_histograms" in content)
    assert list(dict.fromkeys(g["compression"] for g in result["groups"] if g["compression"] != "all")) == compressions
    for group in result["groups"] + result["prompt_lengths"]:
        assert all(row["throughput_tokens_per_s"] > 0 for row in group["rows"])


@pytest.mark.parametrize(
    ("sequences", "agent", "message"),
    [
        (recordings(nf4_train=1), FIXED, r"train prompts with decode steps .* none at \['nf4'\]"),
        (recordings(lambda s: s.compression == "fp16" or s.split == "test"), FIXED, r"train prompts .* \['nf4'\]"),
        (recordings(lambda s: s.compression == "fp16" or s.split == "test" or s.prompt_id == "p0"), FIXED, "validate"),
        (recordings(fp16=1, nf4=1), FIXED, "got 48 texts of one"),
        (recordings(lambda s: s.split == "train"), FIXED, "none of split 'test'"),
        (recordings(lambda s: s.split == "test"), FIXED, "none of split 'train'"),
        (recordings(fp16=2, nf4=2), SURVIVAL, "texts are too short"),
        (recordings(fp16=2, nf4=2), {"name": "speckv_mlp", "epochs": 1}, "texts are too short"),
    ],
)
def test_a_refusal_comes_before_the_run_folder(
    tmp_path: Path, sequences: list[TraceSequence], agent: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecKVError, match=message):
        run(tmp_path, sequences, agent, shipped(LearnSettings))
    assert not (tmp_path / "run").exists()


def test_recordings_to_learn_from_are_checked_as_well(tmp_path: Path) -> None:
    few = recordings(lambda s: s.compression == "fp16" or s.split == "test" or s.prompt_id == "p0")
    make_traces(few, max_new_tokens=40).save(tmp_path / "few.parquet")
    with pytest.raises(SpecKVError, match=r"none at \['nf4'\]"):
        run(tmp_path, recordings(), FIXED, shipped(LearnSettings, traces=str(tmp_path / "few.parquet")))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_is_refused_before_agents_are_made(tmp_path: Path) -> None:
    toy_settings(tmp_path, tmp_path / "run", agent=FIXED)
    make_traces(recordings(nf4_train=1), max_new_tokens=40).save(tmp_path / "toy.parquet")
    asked = shipped(
        EvaluateSettings,
        data=shipped(DataSettings, traces=str(tmp_path / "toy.parquet")),
        cost=shipped(CostSettings, table=str(tmp_path / "toy.json")),
        controllers=(),
        agents=("survival_stopping",),
        output=str(tmp_path / "out"),
    )
    console = CapturedConsole()
    with pytest.raises(SpecKVError, match=r"train prompts with decode steps .* none at \['nf4'\]"):
        evaluate(asked, console)
    assert not console.text
    assert not (tmp_path / "out").exists()
