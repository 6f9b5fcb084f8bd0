# SPDX-License-Identifier: Apache-2.0
"""The two files of a stored policy: `policy.json`, a card with test vectors, and `policy.safetensors`, its arrays.

Run folders, shipped policies and exports hold them in `NAME.speckv/`. The reference page is docs/export.md.

Source:
    https://github.com/huggingface/safetensors, "Format". That package is not used, because a policy must run where it
    is not installed.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.errors import CheckpointError
from speckv.files import canonical_json, write_atomically
from speckv.runtime.session import Session
from speckv.runtime.state import Arrays

FORMAT = "speckv-policy"
FORMAT_VERSION = 2
CARD = "policy.json"
WEIGHTS = "policy.safetensors"
SUFFIX = ".speckv"
RUN_POLICY = f"policy{SUFFIX}"
_EARLIER = ("agent.json", "controller.json", "policy/policy.json")
"""Files of controllers in run folders that earlier versions wrote."""
_LARGEST_CARD = 5_000_000
"""In bytes."""
_KEYS = {
    "format",
    "format_version",
    "speckv_version",
    "name",
    "kind",
    "settings",
    "compressions",
    "granularity",
    "gamma",
    "learns",
    "sampling_safe",
    "observation",
    "trained_on",
    "weights_sha256",
    "test_vectors",
}

DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1", "U8": "|u1"}
"""What a policy's arrays may be of: name in the file -> NumPy's."""
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_LARGEST_HEADER = 1_000_000
_LENGTH = struct.Struct("<Q")


def find_policy(path: Path) -> Path | None:
    """Returns the policy's folder at a path, which is a run folder or that folder itself; None if there is none."""
    return next((folder for folder in (path / RUN_POLICY, path) if (folder / CARD).is_file()), None)


def require_policy(path: Path) -> Path:
    """Returns the policy's folder at a path."""
    folder = find_policy(path)
    if folder is not None:
        return folder
    if found := [name for name in _EARLIER if (path / name).is_file()]:
        raise CheckpointError(
            f"Expected {RUN_POLICY}/{CARD} in {path}, found {found[0]} of an earlier version of SpecKV. Train again."
        )
    raise CheckpointError(
        f"Expected a run folder or a policy's folder at {path}, found neither {RUN_POLICY}/{CARD} nor {CARD}. Train "
        "one (`speckv train agent=ppo`), or export one (`speckv export RUN`)."
    )


def write_policy(folder: Path, card: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes the two files, each atomically, the card last, so that it never describes weights to come."""
    data = dump_tensors(arrays)
    whole = {"format": FORMAT, "format_version": FORMAT_VERSION, **card}
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / CARD, _rendered({**whole, "weights_sha256": hashlib.sha256(data).hexdigest()}))


def _rendered(card: Mapping[str, Any]) -> str:
    vectors = card["test_vectors"]
    lines = {name: [json.dumps(row, sort_keys=True, allow_nan=False) for row in rows] for name, rows in vectors.items()}
    text = ",\n".join(f'    "{name}": [\n      ' + ",\n      ".join(rows) + "\n    ]" for name, rows in lines.items())
    rest = canonical_json({**card, "test_vectors": None})
    return rest.replace('"test_vectors": null', f'"test_vectors": {{\n{text}\n  }}')


def read_card(path: Path) -> dict[str, Any]:
    """Reads a card and checks that it has the fields of the format."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    try:
        if path.stat().st_size > _LARGEST_CARD:
            raise CheckpointError(f"{path} is larger than any policy's card. Export the policy again.")
        card = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}). Export the policy again.") from error
    if not isinstance(card, dict) or not str(card.get("format")).startswith("speckv-"):
        raise CheckpointError(f'{path}: expected a policy card ("format": "{FORMAT}"). Export the policy again.')
    if (card["format"], card.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: expected format {FORMAT} version {FORMAT_VERSION}, got {card['format']} version "
            f"{card.get('format_version')!r}. Train or export it again with this version of SpecKV."
        )
    if set(card) != _KEYS:
        raise CheckpointError(f"{path}: fields differ from the format: {sorted(set(card) ^ _KEYS)}. Export again.")
    return card


def read_weights(path: Path, sha256: object) -> dict[str, NDArray[Any]]:
    """Reads the arrays that a card describes by their file's hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"Expected the weights of a policy at {path}, found none. Export it again.") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} is not the file that its card describes (SHA-256 differs). Export both again.")
    return read_tensors(data, path)


def dump_tensors(arrays: Arrays) -> bytes:
    """Renders arrays, in the order of their names.

    >>> read_tensors(dump_tensors({"a": np.arange(3.0)}), "here")["a"].tolist()
    [0.0, 1.0, 2.0]
    """
    header, chunks, end = {}, [], 0
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        if array.dtype not in _NAMES:
            raise CheckpointError(f"Expected arrays of {sorted(DTYPES)}, got {name!r} of {array.dtype}.")
        data = array.tobytes()
        begin, end = end, end + len(data)
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([_LENGTH.pack(len(text)), text, *chunks])


def read_tensors(data: bytes, path: Path | str) -> dict[str, NDArray[Any]]:
    """Reads any safetensors file of these types.

    Raises:
        CheckpointError: if it is truncated, damaged or of other types.
    """
    try:
        return _read(data)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is damaged: no safetensors file of plain arrays ({text}). Train or export again."
        ) from error


def _read(data: bytes) -> dict[str, NDArray[Any]]:
    (length,) = _LENGTH.unpack_from(data)
    body = _LENGTH.size + length
    if length > _LARGEST_HEADER or body > len(data):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}")
    header = json.loads(data[_LENGTH.size : body])
    header.pop("__metadata__", None)
    arrays: dict[str, NDArray[Any]] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(int(size) for size in entry["shape"])
        begin, end_here = entry["data_offsets"]
        if begin != end or end_here - begin != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"array {name!r} does not fill the bytes {begin} to {end_here}")
        end = end_here
        if body + end > len(data):
            raise ValueError(f"array {name!r} ends behind the file")
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), body + begin).reshape(shape).copy()
    if body + end != len(data):
        raise ValueError(f"{len(data) - body - end} bytes behind the last array")
    return arrays


# -- test vectors: scripted requests with the decisions that the policy took on them -------------------------------

NUM_REQUESTS = 5
NUM_STEPS = 10
"""Steps of a request."""
_DIGITS = 4

Script = Sequence[Mapping[str, Any]]
"""One entry a request: `compression`, `start`, `max_new_tokens` and `steps`. A step has the `draft`'s signals at every
token that may be drafted, the number that the target would accept (`acceptable`), the `target`'s signals at the newest
token, and its `seconds`."""


def make_script(compressions: Sequence[str], *, depth: int, seed: int = 0) -> Script:
    """Draws easy and hard requests for some compressions in turn, with drafts of up to `depth` tokens."""
    rng = np.random.default_rng(seed)
    return [
        {
            "compression": compressions[number % len(compressions)],
            "max_new_tokens": 64,
            "start": _rounded(_signals(rng, 1, 0.8)[0, :2]),
            "steps": [_step(rng, depth, ease) for _ in range(NUM_STEPS)],
        }
        for number, ease in enumerate(rng.uniform(0.3, 0.98, max(NUM_REQUESTS, len(compressions))).tolist())
    ]


def _step(rng: np.random.Generator, depth: int, ease: float) -> Mapping[str, Any]:
    draft = _signals(rng, depth, ease)
    kept = rng.random(depth) < draft[:, 1]
    return {
        "draft": [_rounded(row) for row in draft],
        "acceptable": depth if kept.all() else int(kept.argmin()),
        "target": _rounded(_signals(rng, 1, ease)[0, :2]),
        "seconds": round(float(rng.uniform(0.01, 0.2)), _DIGITS),
    }


def _signals(rng: np.random.Generator, number: int, ease: float) -> Any:
    confidence = rng.beta(4 * ease, 4 * (1 - ease), number).clip(0.02, 1.0)
    entropy = -3.0 * np.log(confidence) * rng.uniform(0.3, 1.0, number)
    margin = np.maximum(confidence - (1 - confidence) * rng.uniform(0, 1, number), 0.0)
    return np.stack([entropy, confidence, margin], axis=1)


def _rounded(values: Any) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def play(script: Script, session: Callable[..., Session]) -> list[list[list[int]]]:
    """Plays requests one after the other in sessions that `session(compression=, max_new_tokens=)` opens.

    Returns for each step of each request the gamma of `begin_step` and the number of drafted tokens.
    """
    return [_request(request, session) for request in script]


def _request(request: Mapping[str, Any], session: Callable[..., Session]) -> list[list[int]]:
    running = session(compression=request["compression"], max_new_tokens=request["max_new_tokens"])
    running.start(*request["start"])
    decided = []
    for step in request["steps"]:
        gamma, drafted = running.begin_step(), 0
        more = gamma > 0
        while more:
            more = running.go_on(*step["draft"][drafted])
            drafted += 1
        decided.append([gamma, drafted])
        accepted = min(drafted, int(step["acceptable"]))
        running.end_step(accepted, *step["target"], seconds=step["seconds"])
    return decided
