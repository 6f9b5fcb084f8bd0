# SPDX-License-Identifier: Apache-2.0
"""What every stage is told; standard library alone, so that a bare interpreter can say what is missing."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "Agg"}
"""Environment of every stage: nothing may be looked for on a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is asked for.

    Attributes:
        device: "cuda", "cuda:1" or "cpu".
        tiny: Random models of a few thousand weights and a few tokens: a rehearsal, whose numbers mean nothing.
        short: Little time in all: each stage does what matters most, and leaves the rest out.
        weights: Folder with the Qwen pair's GGUF files, or with their parts; "" for none.
        tables: Folder that cost tables are written to.
        tests: Where tests marked `gpu` are looked for.
    """

    device: str = "cuda"
    tiny: bool = False
    short: bool = False
    weights: str = ""
    tables: str = "benchmarks/results"
    tests: tuple[str, ...] = ("tests",)

    def to_json(self) -> str:
        """Renders what `from_json` reads."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Settings":
        """Reads what `to_json` rendered.

        >>> Settings.from_json(Settings(device="cpu").to_json()).device
        'cpu'
        """
        content = json.loads(text)
        return Settings(**content | {"tests": tuple(content["tests"])})


def slug(name: str) -> str:
    """A device's name as a file's.

    >>> slug("NVIDIA H100 80GB HBM3")
    'h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")
