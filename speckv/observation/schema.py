# SPDX-License-Identifier: Apache-2.0
"""The list of an observation's features: names, units and bounds, stored with every policy."""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speckv.errors import SchemaError
from speckv.types import FloatArray, IntArray

_ADVICE = "Train and export the policy with the version of SpecKV that is to run it."


class ObservationField(NamedTuple):
    """One feature, in "nats" or, as a pure number, in "1"; values outside `low` and `high` are clipped."""

    name: str
    unit: str
    low: float
    high: float
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationSchema:
    """The features of an observation, in order; `version` changes when the meaning of a field does."""

    version: int
    fields: tuple[ObservationField, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, in order."""
        return tuple(f.name for f in self.fields)

    @property
    def low(self) -> FloatArray:
        """Shape [features]; least values."""
        return np.array([f.low for f in self.fields], np.float32)

    @property
    def high(self) -> FloatArray:
        """Shape [features]; greatest values."""
        return np.array([f.high for f in self.fields], np.float32)

    @property
    def size(self) -> int:
        """Number of features."""
        return len(self.fields)

    def index(self, name: str) -> int:
        """Position of a feature; a SchemaError if there is none of that name."""
        if name not in self.names:
            raise SchemaError(f"Expected one of the features {list(self.names)}, got {name!r}.")
        return self.names.index(name)

    def select_from(self, other: "ObservationSchema") -> IntArray:
        """Shape [features of this schema]; their positions in observations of another schema, found by name.

        Raises:
            SchemaError: if `other` has another version, lacks a feature, or has it with another unit or bounds.

        >>> first, second = (ObservationField(name, "1", 0.0, 1.0, "") for name in ("first", "second"))
        >>> stored = ObservationSchema(version=1, fields=(second,))
        >>> stored.select_from(ObservationSchema(version=1, fields=(first, second))).tolist()
        [1]
        """
        if self.version != other.version:
            raise SchemaError(f"Expected observation schema version {other.version}, got {self.version}. {_ADVICE}")
        positions = {f.name: position for position, f in enumerate(other.fields)}
        for ours in self.fields:
            if ours.name not in positions:
                raise SchemaError(f"Expected features among {list(other.names)}, got {ours.name!r}. {_ADVICE}")
            theirs = other.fields[positions[ours.name]]
            for part in ("unit", "low", "high"):
                wanted, got = getattr(theirs, part), getattr(ours, part)
                if wanted != got:
                    raise SchemaError(f"Expected feature {ours.name!r} with {part} {wanted!r}, got {got!r}. {_ADVICE}")
        return np.array([positions[name] for name in self.names], np.int64)

    def sha256(self) -> str:
        """Hash of the canonical JSON; equal hashes mean equal schemas."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Renders the schema as JSON, the same text for the same schema."""
        content = {"version": self.version, "fields": [f._asdict() for f in self.fields]}
        return json.dumps(content, sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "ObservationSchema":
        """Reads what `to_json` wrote; a SchemaError if it is no observation schema."""
        try:
            content = json.loads(text)
            read = tuple(ObservationField(**item) for item in content["fields"])
            schema = ObservationSchema(version=content["version"], fields=read)
            np.array([(f.low, f.high) for f in read], np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(f"Expected an observation schema as JSON, got {error}. Export again.") from error
        return schema
