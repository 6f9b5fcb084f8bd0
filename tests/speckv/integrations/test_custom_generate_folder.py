# SPDX-License-Identifier: Apache-2.0
"""A policy as transformers' `custom_generate` folder, in a process that has no SpecKV and no network."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.dynamic_module_utils import get_relative_import_files

from speckv.commands.export import main
from speckv.errors import CheckpointError, ConfigError
from speckv.export import hf
from speckv.export.hf import REQUIREMENTS, write_custom_generate
from speckv.runtime import Policy, PolicyController, load
from speckv.runtime.constant import AcceptanceTable, ConstantGamma
from tests.fakes import VOCAB
from tests.fakes_custom_generate import Pair, call
from tests.fakes_policies import Scheduled, store
from tests.fakes_traces import make_cost_table, random_traces
from tests.speckv.test_runtime_learned import random_policy

ROOT = Path(__file__).resolve().parents[3]
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 1.3}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def policy(controller: Any) -> Policy:
    return Policy.of(controller, fallback={"fp16": 2}, cost_ratio={"fp16": 0.3}, trained_on={"vocab_size": VOCAB})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.save(tmp_path_factory.mktemp("pair"))


def exported(pair: Pair, name: str, controller: Any) -> Path:
    folder = pair.folder / name
    if not folder.exists():
        write_custom_generate(policy(controller), folder)
    return folder


def as_on_the_hub(pair: Pair, folder: Path) -> str:
    """Puts a folder where a download would have put it, and returns the repository's name."""
    repository = pair.folder / "home" / "hub" / "models--me--mine"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return "me/mine"


def in_the_targets_own_repository(pair: Pair, folder: Path) -> Path:
    own = pair.folder / "own"
    shutil.copytree(pair.target_folder, own)
    shutil.copytree(folder / "custom_generate", own / "custom_generate")
    return own


@pytest.fixture(scope="module")
def answers(pair: Pair) -> dict[str, dict[str, Any]]:
    """Everything in one process: starting it takes most of the time."""
    three = exported(pair, "three", ConstantGamma(3))
    five = exported(pair, "five-with.a dot", ConstantGamma(5))
    table = exported(pair, "table", AcceptanceTable([0.4, 0.6, 0.8], {"fp16": [0, 1, 4, 7]}))
    network = exported(pair, "network", PolicyController(random_policy()))
    other = exported(pair, "other", ConstantGamma(4))
    tampered = exported(pair, "tampered", ConstantGamma(3))
    card = json.loads((tampered / "policy.json").read_text())
    card["test_vectors"]["decisions"][0][0] = [2, 2]
    (tampered / "policy.json").write_text(json.dumps(card))
    (tampered / "custom_generate" / "policy_data.py").write_text(
        hf._data([tampered / "policy.json", tampered / "policy.safetensors"])
    )
    batch = [call(0)["ids"][0], call(1)["ids"][0]]
    calls = {
        "plain": call(1, assisted=False),
        "three": call(1, three),
        "five": call(1, five),
        "table": call(1, table),
        "network": call(2, network),
        "sampled": call(3, table, **SAMPLED),
        "from the hub": call(1, as_on_the_hub(pair, other)),
        "own repository": call(1, target=str(in_the_targets_own_repository(pair, five))),
        "loaded once": call(1, once=str(three)),
        "untrusted": call(1, three) | {"trust_remote_code": False},
        "tampered": call(1, tampered),
        "no draft": call(1, three, assisted=False),
        "beams": call(1, three, num_beams=2),
        "a batch": call(1, three) | {"ids": batch},
        "several texts": call(1, three, num_return_sequences=2, do_sample=True),
        "lossy verification": call(1, three, assistant_ensemble_weight=0.5),
        "a strange compression": call(1, three, compression="fp3"),
        "a criterion": call(1, five, ends_after=17),
        "threads": call(1, table, threads=4),
        "three again": call(1, three, compression="nf4", cost_ratio=0.5),
    }
    return dict(zip(calls, pair.without_speckv(list(calls.values())), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "gamma"),
    [
        ("three", 3),
        ("five", 5),
        ("three again", 3),
        ("from the hub", 4),
        ("own repository", 5),
        ("loaded once", 3),
    ],
)
def test_greedy_text_is_the_targets_and_gamma_the_policys(
    what: str, gamma: int, answers: dict[str, dict[str, Any]]
) -> None:
    assert "error" not in answers[what]
    text, drafted = answers[what]["text"], answers[what]["drafted"]
    assert text == answers["plain"]["text"]
    assert drafted[0] == gamma
    assert drafted == sorted(drafted, reverse=True)  # fewer where the budget ends, and nowhere else
    assert drafted.count(gamma) >= len(drafted) - gamma


@pytest.mark.slow
@pytest.mark.parametrize("what", ["table", "network", "sampled"])
def test_it_does_what_control_does(what: str, pair: Pair, answers: dict[str, dict[str, Any]]) -> None:
    folder = pair.folder / ("table" if what == "sampled" else what)
    sampled: dict[str, Any] = SAMPLED if what == "sampled" else {}
    wanted = pair.under_control(load(folder), call({"table": 1, "network": 2, "sampled": 3}[what], **sampled))
    assert answers[what] == wanted
    assert len(wanted["text"]) == 39
    assert len(set(wanted["drafted"])) > 1


@pytest.mark.slow
def test_a_stopping_criterion_ends_the_text_at_its_call(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["a criterion"].get("text") == answers["plain"]["text"][: 9 + 17]


@pytest.mark.slow
def test_several_threads_generate_at_the_same_time(answers: dict[str, dict[str, Any]]) -> None:
    assert answers["threads"].get("texts") == [answers["plain"]["text"]] * 4


REFUSED = {
    "untrusted": "trust_remote_code",
    "tampered": "CheckpointError: The policy inside this custom_generate folder: .*decides otherwise here",
    "no draft": "ConfigError: Expected assistant_model=DRAFT",
    "beams": "ConfigError: Expected greedy decoding or sampling, got settings of 'beam_search'",
    "a batch": "ValueError: .*batch",
    "several texts": "num_return_sequences",
    "lossy verification": "ConfigError: Expected generate without assistant_ensemble_weight",
    "a strange compression": "ConfigError: Expected a compression of",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused(what: str, answers: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(AssertionError, match=REFUSED[what]):
        raise AssertionError(answers[what]["error"])


def test_transformers_copies_every_module(tmp_path: Path) -> None:
    write_custom_generate(policy(ConstantGamma(3)), tmp_path)
    generate = tmp_path / "custom_generate" / "generate.py"
    named = {Path(path).name for path in get_relative_import_files(generate)}
    assert named == {path.name for path in generate.parent.glob("*.py")} - {"generate.py"}


def test_the_folder_is_a_policys_folder_too(tmp_path: Path) -> None:
    made = policy(PolicyController(random_policy()))
    write_custom_generate(made, tmp_path)
    rows = np.random.default_rng(0).random((1000, 17)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path).controller.act_batch(rows), made.controller.act_batch(rows))
    page = (tmp_path / "README.md").read_text()
    assert f"| vocabulary | {VOCAB} |" in page
    assert "| tokens drafted as a fallback | 2 (fp16) |" in page


def test_requirements_are_the_projects_own() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    by_name: dict[str, list[str]] = {}
    for requirement in REQUIREMENTS:
        name = requirement.rstrip("<>=.0123456789")
        by_name.setdefault(name, []).append(requirement.removeprefix(name))
    assert {name + ",".join(bounds) for name, bounds in by_name.items()} <= set(declared)


def test_a_kind_that_needs_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "EMBEDDED", "speckv.traces")
    with pytest.raises(ConfigError, match=r"imports \['pyarrow'\]"):
        write_custom_generate(policy(ConstantGamma(3)), tmp_path)


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can be stored"):
        write_custom_generate(Policy.of(Scheduled.turns(3)), tmp_path)


def test_the_command_writes_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    random_traces(num_prompts=8, seed=3).save(run / "traces.parquet")
    make_cost_table().save(run / "cost.json")
    names = {"cost": {"name": str(run / "cost.json")}, "traces": {"name": str(run / "traces.parquet")}}
    (run / "run.json").write_text(json.dumps(names))
    store(run, ConstantGamma(3))
    main([str(run), "--to", "hf-custom-generate", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "custom_generate" / "generate.py").is_file()
    assert load(tmp_path / "out").name == "fixed-3"
