# SPDX-License-Identifier: Apache-2.0
"""Arrays as a safetensors file, with NumPy alone: a length, a JSON header, raw bytes.

Source:
    https://github.com/huggingface/safetensors, "Format". The package itself reads what is written here, which a test
    holds; a policy must run where it is not installed.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.errors import CheckpointError

Arrays = Mapping[str, NDArray[Any]]
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "BOOL": "|b1", "U8": "|u1"}
"""What a policy's arrays may be of: name in the file -> NumPy's."""
_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_LARGEST_HEADER = 1_000_000
_LENGTH = struct.Struct("<Q")


def dump_tensors(arrays: Arrays) -> bytes:
    """Renders arrays, in the order of their names.

    Raises:
        CheckpointError: if one is of a type that is not in `DTYPES`.

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
    """Reads what `dump_tensors` wrote, or any safetensors file of these types.

    Args:
        data: The file's bytes.
        path: Named in errors.

    Raises:
        CheckpointError: if it is truncated, damaged or of other types.
    """
    try:
        return _read(data)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is no safetensors file of plain arrays ({text}). Export the policy again."
        ) from (error)


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
