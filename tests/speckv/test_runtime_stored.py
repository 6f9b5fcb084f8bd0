# SPDX-License-Identifier: Apache-2.0
"""A policy on disk: whole after a round trip, refused in one line when anything about it is off."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from speckv.errors import CheckpointError, ConfigError, SpecKVError
from speckv.observation import SCHEMA, ObservationField
from speckv.runtime import MlpPolicy, Policy, PolicyController, load
from speckv.runtime.constant import AcceptanceTable, ConstantGamma, ConstantPerCompression
from speckv.runtime.learned import LstmController
from speckv.runtime.policy import load_controller
from speckv.runtime.storage import DTYPES, dump_tensors, read_tensors
from speckv.types import BatchMemory, Controller, FloatArray
from tests.fakes_policies import Scheduled
from tests.speckv.test_runtime_learned import random_lstm, random_policy

KNOWN: Mapping[str, Any] = {"cost_ratio": {"fp16": 0.3, "nf4": 0.5}, "fallback": {"fp16": 3, "nf4": 2}}


def policy(controller: Controller | None = None) -> Policy:
    return Policy.of(controller or PolicyController(random_policy()), trained_on={"vocab_size": 1000}, **KNOWN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy().save(tmp_path / "mine.speckv")
    return tmp_path / "mine.speckv"


CONTROLLERS: Mapping[str, Callable[[], Controller]] = {
    "constant": lambda: ConstantGamma(4),
    "table": lambda: ConstantPerCompression({"fp16": 4, "nf4": 0}),
    "acceptance": lambda: AcceptanceTable([0.5, 0.8], {"fp16": (1, 3, 6), "nf4": (0, 1, 2)}),
    "mlp": lambda: PolicyController(random_policy()),
    "lstm": lambda: LstmController(random_lstm()),
}


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_a_round_trip_changes_nothing(kind: str, tmp_path: Path) -> None:
    made = policy(CONTROLLERS[kind]())
    made.save(tmp_path)
    read = load(tmp_path)
    rows = np.random.default_rng(0).random((10_000, 17)).astype(np.float32)

    def decided(controller: Controller) -> list[int]:
        if isinstance(controller, BatchMemory):
            controller.start(len(rows))
        return list(controller.act_batch(rows))

    assert decided(read.controller) == decided(made.controller)
    assert (read.name, read.fallback, read.cost_ratio, read.trained_on) == (
        made.name,
        made.fallback,
        made.cost_ratio,
        made.trained_on,
    )
    assert read.compressions == ("fp16", "nf4")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    read.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert decided(load_controller(tmp_path)) == decided(made.controller)
    assert load_controller(tmp_path, name="mine").name == "mine"


def test_the_card_has_at_least_32_vectors_and_no_file_is_a_pickle(folder: Path) -> None:
    card = json.loads((folder / "policy.json").read_text())
    assert sum(len(steps) for steps in card["test_vectors"]["decisions"]) >= 32
    assert sorted(p.name for p in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    arrays = load_file(folder / "policy.safetensors")  # the reference implementation
    assert arrays["layers.weight_0"].shape == (64, 17)


def edit(**changes: object) -> Callable[[dict[str, Any]], None]:
    def apply(card: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = card
            for name in parents:
                place = place[name]
            place[last] = value

    return apply


BAD: Mapping[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another version": (edit(format_version=99), "version 2, got speckv-policy version 99"),
    "another format": (edit(format="onnx"), "expected a policy card"),
    "the format of an earlier version": (
        edit(format="speckv-export", format_version=1),
        "expected format speckv-policy version 2, got speckv-export version 1. Train or export it again",
    ),
    "too few gammas": (edit(settings__gammas=[0, 1]), "that end in 2 gammas"),
    "a malformed schema": (edit(observation__schema={"version": 1}), "observation schema"),
    "an unknown field": (edit(extra=1), r"fields differ from the format: \['extra'\]"),
    "an unknown kind": (edit(kind="oracle"), "got 'oracle'"),
    "a negative gamma": (edit(settings__gammas=[-1] * 17), "a count of tokens from 0"),
    "an absurd gamma": (edit(settings__gammas=[10**9] * 17), "a count of tokens from 0"),
    "too wide a range": (edit(gamma__max=10**6), "Expected gamma from 0 to 16"),
    "a range that is text": (edit(gamma__max="many"), "malformed field"),
    "a wild fallback": (edit(gamma__fallback={"fp16": 17}), "fallback gammas"),
    "a strange compression": (edit(gamma__fallback={"fp3": 1}), "Expected compressions"),
    "a cost ratio of zero": (edit(observation__cost_ratio={"fp16": 0.0}), "cost ratios above 0"),
    "a missing feature": (edit(observation__typical={}), "malformed field"),
    "another memory": (edit(observation__memory={"decay": 0.5}), "memory constants"),
    "another granularity": (edit(granularity="token"), "The card states"),
    "a lie about learning": (edit(learns=True), "The card states"),
    "another activation": (edit(settings__activation="relu"), "activation"),
    "no settings": (edit(settings=None), "missing or malformed field"),
    "no vectors": (edit(test_vectors={}), "malformed field"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_card_is_refused_in_one_line(what: str, folder: Path) -> None:
    change, message = BAD[what]
    card = json.loads((folder / "policy.json").read_text())
    change(card)
    (folder / "policy.json").write_text(json.dumps(card))
    with pytest.raises(SpecKVError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_another_observation_is_named(folder: Path) -> None:
    card = json.loads((folder / "policy.json").read_text())
    card["observation"]["schema"]["fields"][3]["unit"] = "furlongs"
    (folder / "policy.json").write_text(json.dumps(card))
    with pytest.raises(SpecKVError, match="'draft_confidence_min' with unit '1', got 'furlongs'"):
        load(folder)


def stored_with(folder: Path, fields: Sequence[ObservationField], weight: str = "layers.weight_0") -> None:
    """Rewrites a policy as one that was stored when observations had other features or another order."""
    columns = [SCHEMA.names.index(f.name) for f in fields if f.name in SCHEMA.names]
    arrays = read_tensors((folder / "policy.safetensors").read_bytes(), "x")
    arrays |= {name: arrays[name][..., columns] for name in ("mean", "std", weight)}
    data = dump_tensors(arrays)
    (folder / "policy.safetensors").write_bytes(data)
    card = json.loads((folder / "policy.json").read_text())
    card["observation"]["schema"]["fields"] = [f._asdict() for f in fields]
    card["observation"]["typical"] = {f.name: 0.5 for f in fields}
    card["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "policy.json").write_text(json.dumps(card))


def blind_policy(*places: int) -> MlpPolicy:
    """A network that ignores some features."""
    policy = random_policy()
    first = policy.weights[0].copy()
    first[:, places] = 0.0
    return replace(policy, weights=(first, *policy.weights[1:]))


@pytest.mark.parametrize("reorder", [False, True])
def test_features_are_found_by_name_where_a_policy_was_stored_with_fewer(reorder: bool, tmp_path: Path) -> None:
    made = policy(PolicyController(blind_policy(3, 16)))
    made.save(tmp_path)
    kept = [f for place, f in enumerate(SCHEMA.fields) if place not in (3, 16)]
    stored_with(tmp_path, kept[::-1] if reorder else kept)
    read = load(tmp_path)
    rows = np.random.default_rng(0).random((1000, 17)).astype(np.float32)
    np.testing.assert_array_equal(read.controller.act_batch(rows), made.controller.act_batch(rows))
    assert (read.typical[0], read.typical[3]) == (0.5, 1.0)  # stored, and neutral
    read.save(tmp_path / "again")
    np.testing.assert_array_equal(load(tmp_path / "again").controller.act_batch(rows), made.controller.act_batch(rows))


def test_a_feature_that_is_unknown_today_is_named(tmp_path: Path) -> None:
    policy().save(tmp_path)
    stored_with(tmp_path, (SCHEMA.fields[0]._replace(name="mood"), *SCHEMA.fields[1:]))
    with pytest.raises(SpecKVError, match=r"got 'mood'\. Train"):
        load(tmp_path)


def test_a_decision_that_differs_from_the_vectors_is_found_out(folder: Path) -> None:
    card = json.loads((folder / "policy.json").read_text())
    card["settings"]["gammas"] = list(range(16, -1, -1))
    (folder / "policy.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="decides otherwise here"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_truncated_file_is_refused(name: str, share: float, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_tampered_weights_are_refused(folder: Path) -> None:
    data = bytearray((folder / "policy.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "policy.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        load(folder)


def test_numbers_that_are_none_are_refused(folder: Path) -> None:
    text = (folder / "policy.json").read_text()
    (folder / "policy.json").write_text(text.replace('"fp16": 0.3', '"fp16": NaN', 1))
    with pytest.raises(CheckpointError, match="NaN is no number"):
        load(folder)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="speckv export"):
        load(tmp_path)


def test_a_live_controller_of_no_known_kind_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can be stored"):
        Policy.of(Scheduled.turns(3), **KNOWN).save(tmp_path)


def test_a_subclass_without_a_kind_of_its_own_cannot_be_saved(tmp_path: Path) -> None:
    class Doubled(ConstantGamma):
        def act(self, observation: FloatArray) -> int:
            return 2 * super().act(observation)

    with pytest.raises(CheckpointError, match="can be stored"):
        policy(Doubled(2)).save(tmp_path)


def test_sessions_need_known_words() -> None:
    with pytest.raises(ConfigError, match="'fp3'"):
        policy().session(max_new_tokens=8, compression="fp3")
    with pytest.raises(ConfigError, match="everything"):
        policy().session(max_new_tokens=8, hidden=["everything"])


# -- the tensor file ------------------------------------------------------------------------------------------------


def test_tensors_are_those_of_the_reference_implementation() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: (rng.random((3, 2)) * 9).astype(code) for name, code in DTYPES.items()} | {"none": np.zeros((0, 4))}
    theirs, ours = read_tensors(save(arrays), "x"), read_tensors(dump_tensors(arrays), "x")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
        assert ours[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 4),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),
        ({"a": {"dtype": "C128", "shape": [1], "data_offsets": [0, 16]}}, 16),
        ({"a": None}, 0),
        ([], 0),
    ],
)
def test_headers_that_lie_are_refused(header: object, body: int) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(CheckpointError, match="damaged: no safetensors file"):
        read_tensors(len(text).to_bytes(8, "little") + text + bytes(body), "x")


# -- the room -------------------------------------------------------------------------------------------------------


def test_running_a_policy_imports_numpy_alone(folder: Path) -> None:
    program = (
        "import sys; from speckv import runtime; p = runtime.load(sys.argv[1]); s = p.session(max_new_tokens=9); "
        "s.start(0.1, 0.9); s.begin_step(); "
        "heavy = {'torch', 'transformers', 'pyarrow', 'gymnasium', 'safetensors', 'agents'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
