# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's `--spec-draft-n-max` and `--spec-draft-p-min`: a cap, and a least probability."""

from dataclasses import dataclass
from typing import Any

from speckv.agents.building import COUNT, SHARE, require_ranges
from speckv.agents.rules.base import SignalRule

GRID = {"p_min": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "n_max": (2, 3, 4, 6, 8, 12, 16)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppSettings:
    """Hyper-parameters; the defaults are those of builds up to 2026, today's (3 and 0) are a fixed gamma of 3."""

    n_max: int
    p_min: float

    def __post_init__(self) -> None:
        """Checks ranges."""
        require_ranges(self, n_max=COUNT, p_min=SHARE)


class LlamaCpp(SignalRule):
    """Stops at a token of top-1 probability below p_min.

    llama.cpp leaves that token out of the draft, which is lossless because it drafts greedily. Here it stays, as it
    must under rejection sampling: verification is one token wider, and now and then one token more is accepted.

    Source:
        llama.cpp, `common/speculative.cpp`.
    """

    kind = "llama_cpp"
    settings_class = LlamaCppSettings

    def __init__(self, settings: LlamaCppSettings) -> None:
        super().__init__("llama-cpp", settings.n_max)
        self.settings = settings

    def passes(self, values: Any) -> Any:
        """Whether the newest token is likely enough."""
        return values >= self.settings.p_min
