# SPDX-License-Identifier: Apache-2.0
"""What was decoded, one request a line of a JSON Lines file that can be read at any moment."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from speckv.files import write_atomically
from speckv.types import StepOutcome

LEARN, MEASURE, COMPARE = "learn", "measure", "compare"
"""Phases of a run: learning, random actions that measure the observations' scale, and the comparison at the end."""


@dataclass(slots=True, kw_only=True)
class Decoded:
    """One request as it is decoded; sums over decode steps, the prefill left out.

    Attributes:
        number: Of the request in its run, from 0.
        prompt_id: Of the prompt.
        phase: One of `LEARN`, `MEASURE`, `COMPARE`.
        arm: What decided.
        num_steps: Decode steps.
        emitted: Tokens that they emitted.
        drafted: Tokens drafted.
        accepted: Drafted tokens kept.
        seconds: Time of the steps; with decisions before steps where `generate` drove them.
        reward: Sum of rewards, where an environment gave any.
    """

    number: int
    prompt_id: str
    phase: str
    arm: str
    num_steps: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    reward: float = 0.0

    def add(self, outcome: StepOutcome) -> None:
        """Takes in a decode step."""
        self.num_steps += 1
        self.emitted += outcome.num_emitted
        self.drafted += outcome.num_drafted
        self.accepted += outcome.num_accepted
        self.seconds += outcome.seconds

    @property
    def tokens_per_s(self) -> float:
        """Emitted tokens a second; 0 before the first step."""
        return self.emitted / self.seconds if self.seconds > 0 else 0.0

    def line(self, tokens: Sequence[int], finish: str | None) -> dict[str, object]:
        """The record of the request.

        Args:
            tokens: The text so far, the prefill's token first.
            finish: "eos", "length", or None for a request that was cut off.
        """
        return {
            "request": self.number,
            "prompt_id": self.prompt_id,
            "phase": self.phase,
            "arm": self.arm,
            "finish": finish,
            "num_steps": self.num_steps,
            "num_emitted": self.emitted,
            "num_drafted": self.drafted,
            "num_accepted": self.accepted,
            "seconds": round(self.seconds, 6),
            "tokens": list(tokens),
        }


def summarise(requests: Sequence[Decoded]) -> dict[str, float]:
    """Rates over requests: sums first, then quotients.

    >>> one = Decoded(number=0, prompt_id="p", phase=LEARN, arm="a", num_steps=2, emitted=6, drafted=5, seconds=3.0)
    >>> summarise([one])
    {'tokens_per_s': 2.0, 'tokens_per_step': 3.0, 'mean_drafted': 2.5}
    """
    steps, emitted = sum(r.num_steps for r in requests), sum(r.emitted for r in requests)
    seconds, drafted = sum(r.seconds for r in requests), sum(r.drafted for r in requests)
    return {
        "tokens_per_s": emitted / seconds if seconds > 0 else 0.0,
        "tokens_per_step": emitted / max(steps, 1),
        "mean_drafted": drafted / max(steps, 1),
    }


class DecodedLog:
    """Appends whole lines to a file.

    Args:
        path: Of the file; made at the first line, and to be said until then.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def append(self, record: Mapping[str, object]) -> None:
        """Adds a line in one write, so that no reader and no interruption finds half of it."""
        assert self.path is not None
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def read(self) -> list[dict[str, object]]:
        """Reads every whole line; what a crash of the machine left of a last one is no line."""
        if self.path is None or not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(json.loads(line))
        return found

    def forget_from(self, number: int) -> None:
        """Drops what will be decoded again: requests from a number on, and any comparison.

        Args:
            number: Of the first request to drop.
        """
        if self.path is None or not self.path.is_file():
            return
        kept = [r for r in self.read() if r["phase"] != COMPARE and int(str(r["request"])) < number]
        write_atomically(self.path, "".join(json.dumps(r, sort_keys=True) + "\n" for r in kept))
