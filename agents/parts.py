# SPDX-License-Identifier: Apache-2.0
"""What a controller knows besides its settings, as arrays: fitted networks and the times of a machine."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError
from speckv.runtime.network import Network

Arrays = dict[str, NDArray[Any]]
COMPRESSIONS = "times.compressions"
"""The one array of words."""
_OTHER = "other"
_TIMES = ("draft_s", "lag_s", "verify_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything learned or measured.

    Attributes:
        networks: By role.
        times: Of the machine it decides for, if it weighs time.
        arrays: Anything else.
    """

    networks: Mapping[str, Network] = field(default_factory=dict)
    times: StepTimes | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Renders an npz archive; see `from_bytes`."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.to_arrays())
        return buffer.getvalue()

    def to_arrays(self) -> Arrays:
        """Everything under one name each; see `from_arrays`."""
        arrays: Arrays = {f"{_OTHER}.{name}": values for name, values in self.arrays.items()}
        for role, network in self.networks.items():
            for index, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
                arrays |= {f"{role}.weight_{index}": weight, f"{role}.bias_{index}": bias}
        if self.times is not None:
            arrays |= {f"times.{name}": getattr(self.times, name) for name in _TIMES}
            arrays["times.controller_s"] = np.array(self.times.controller_s)
            arrays[COMPRESSIONS] = np.array(self.times.compressions)
        return arrays

    @staticmethod
    def from_bytes(data: bytes) -> "Parts":
        """Reads what `to_bytes` wrote.

        Raises:
            CheckpointError: if it is damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                return Parts.from_arrays({name: archive[name] for name in archive.files})
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            text = " ".join(str(error).split())[:200]
            raise CheckpointError(f"A controller's arrays are damaged ({text}). Train again.") from error

    @staticmethod
    def from_arrays(arrays: Arrays) -> "Parts":
        """Takes what `to_arrays` gave.

        Raises:
            CheckpointError: if something is missing or not finite.
        """
        try:
            roles = sorted({name.split(".")[0] for name in arrays} - {"times", _OTHER})
            other = {name.partition(".")[2]: v for name, v in arrays.items() if name.startswith(f"{_OTHER}.")}
            networks = {role: _network(arrays, role) for role in roles}
            return Parts(networks=networks, times=_times(arrays), arrays=other)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"A controller's arrays are damaged ({error}). Train again.") from error

    def network(self, role: str) -> Network:
        """Returns a network.

        Raises:
            CheckpointError: if there is none of that role.
        """
        if role not in self.networks:
            raise CheckpointError(f"Expected a network {role!r}, found {sorted(self.networks)}. Train again.")
        return self.networks[role]

    def needed_array(self, name: str) -> NDArray[Any]:
        """Returns an array.

        Raises:
            CheckpointError: if there is none of that name.
        """
        if name not in self.arrays:
            raise CheckpointError(f"Expected an array {name!r}, found {sorted(self.arrays)}. Train again.")
        return self.arrays[name]

    def needed_times(self) -> StepTimes:
        """Returns the times.

        Raises:
            CheckpointError: if there are none.
        """
        if self.times is None:
            raise CheckpointError("Expected the times of a machine, found none. Train again.")
        return self.times


def _network(arrays: Arrays, role: str) -> Network:
    depth = sum(name.startswith(f"{role}.weight_") for name in arrays)
    weights = [arrays[f"{role}.weight_{index}"] for index in range(depth)]
    biases = [arrays[f"{role}.bias_{index}"] for index in range(depth)]
    if not all(np.isfinite(a).all() for a in (*weights, *biases)):
        raise ValueError(f"network {role} holds NaN or infinity")
    return Network(weights, biases)


def _times(arrays: Arrays) -> StepTimes | None:
    if COMPRESSIONS not in arrays:
        return None
    return StepTimes(
        compressions=tuple(str(name) for name in arrays[COMPRESSIONS]),
        controller_s=float(arrays["times.controller_s"]),
        **{name: arrays[f"times.{name}"] for name in _TIMES},
    )
