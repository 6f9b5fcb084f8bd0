# SPDX-License-Identifier: Apache-2.0
"""The features of an observation: names, units, bounds."""

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from speckv.errors import SchemaError
from speckv.types import FloatArray


class ObservationField(NamedTuple):
    """One feature.

    Attributes:
        name: What policies and plots call it.
        unit: "nats", or "1" for a pure number.
        low: Least value; smaller ones are clipped to it.
        high: Greatest value.
        description: What it tells, with its value before the first step where that is a convention.
    """

    name: str
    unit: str
    low: float
    high: float
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationSchema:
    """The features of an observation, in order; it travels with every exported policy.

    Attributes:
        version: Changes when the meaning of a field does.
        fields: One entry a feature.
    """

    version: int
    fields: tuple[ObservationField, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features."""
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
        """Position of a feature.

        Raises:
            SchemaError: if there is none of that name.
        """
        if name not in self.names:
            raise SchemaError(f"Expected one of the features {list(self.names)}, got {name!r}.")
        return self.names.index(name)

    def sha256(self) -> str:
        """Hash of the canonical JSON; equal hashes mean equal schemas."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Renders the schema as JSON, the same text for the same schema."""
        content = {"version": self.version, "fields": [f._asdict() for f in self.fields]}
        return json.dumps(content, sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "ObservationSchema":
        """Reads what `to_json` wrote.

        Raises:
            SchemaError: if it is no observation schema.
        """
        try:
            content = json.loads(text)
            read = tuple(ObservationField(**item) for item in content["fields"])
            schema = ObservationSchema(version=content["version"], fields=read)
            np.array([(f.low, f.high) for f in read], np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise SchemaError(
                f"Expected an observation schema as JSON, got {error}. Export the policy again."
            ) from error
        return schema

    def require_same(self, other: "ObservationSchema") -> None:
        """Passes if `other` has the same features with the same meaning.

        Raises:
            SchemaError: naming the first difference.
        """
        if self.version != other.version:
            _refuse("version", self.version, other.version)
        for place, (ours, theirs) in enumerate(zip(self.fields, other.fields, strict=False)):
            for name in ObservationField._fields:
                if getattr(ours, name) != getattr(theirs, name):
                    _refuse(f"{name} of feature {place}", getattr(ours, name), getattr(theirs, name))
        if self.size != other.size:
            _refuse("number of features", self.size, other.size)


def _refuse(what: str, expected: object, got: object) -> None:
    raise SchemaError(
        f"Expected an observation schema with {what} {expected!r}, got {got!r}. "
        "Train and export the policy with the version of SpecKV that is to run it."
    )


def _field(name: str, low: float, high: float, description: str, unit: str = "1") -> ObservationField:
    return ObservationField(name=name, unit=unit, low=float(low), high=float(high), description=description)


_PREVIOUS = "over the tested tokens of the last drafting step"

SCHEMA = ObservationSchema(
    version=1,
    fields=(
        _field("draft_entropy_mean", 0, 12, f"Draft's mean entropy {_PREVIOUS}; 0 at first", "nats"),
        _field("draft_entropy_max", 0, 12, f"Draft's greatest entropy {_PREVIOUS}; 0 at first", "nats"),
        _field("draft_confidence_mean", 0, 1, f"Draft's mean top-1 probability {_PREVIOUS}; 1 at first"),
        _field("draft_confidence_min", 0, 1, f"Draft's least top-1 probability {_PREVIOUS}; 1 at first"),
        _field("draft_margin_mean", 0, 1, f"Draft's mean top-1 minus top-2 probability {_PREVIOUS}; 1 at first"),
        _field("accepted_fraction", 0, 1, "Accepted over drafted in the last drafting step; 0.7 at first"),
        _field("previous_gamma", 0, 1, "Tokens drafted in the previous step, over 16; 0 at first"),
        _field(
            "acceptance_ema", 0, 1, "Accepted over tested tokens, both decayed by 0.9 a step; prior 4 tokens at 0.7"
        ),
        _field(
            "accepted_ema", 0, 1, "Mean accepted length of drafting steps, decayed by 0.9 each, over 16; 7/3 at first"
        ),
        _field("draft_confidence_last", 0, 1, "Draft's top-1 probability at the last tested token; 1 at first"),
        _field("target_entropy", 0, 12, "Target's entropy at the newest emitted token", "nats"),
        _field("target_confidence", 0, 1, "Target's top-1 probability at the newest emitted token"),
        _field("cost_ratio", 0, 2, "One draft pass over one target pass"),
        _field("bits_per_weight", 0, 1, "Bits of one weight of the target, over 16"),
        _field("position", 0, 1, "Emitted tokens over the token budget"),
        _field("tokens_left", 0, 1, "Tokens left in the budget, at most 64, over 64"),
        _field("draft_lag", 0, 1, "Emitted tokens the draft has not read, the newest left out, at most 16, over 16"),
    ),
)
