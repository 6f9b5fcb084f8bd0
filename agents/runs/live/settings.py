# SPDX-License-Identifier: Apache-2.0
"""Settings of learning on live requests, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How live requests are decoded and compared.

    Attributes:
        prompts: JSON Lines files or folders; None takes the shipped examples.
        max_prompt_tokens: Longer prompts are left out.
        requests: That a bandit learns from.
        sampling: Fields of `SamplingConfig`; greedy by default.
        heldout: Test prompts that all arms decode at the end; 0 leaves that out.
        fixed_gammas: Arms of that comparison beside plain decoding and what was learned.
        recent: Requests behind the figure "the last requests".
        threads: PyTorch threads; None keeps torch's own number, at most the usable cores.
    """

    prompts: tuple[str, ...] | None = None
    max_prompt_tokens: int = 1024
    requests: int = 40
    sampling: Mapping[str, object] = field(default_factory=dict)
    heldout: int = 3
    fixed_gammas: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    recent: int = 10
    threads: int | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("max_prompt_tokens", "requests", "recent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Expected live.{name} 1 or more, got {getattr(self, name)}.")
        if self.heldout < 0:
            raise ConfigError(f"Expected live.heldout 0 or more, got {self.heldout}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"Expected live.threads 1 or more, or null, got {self.threads}.")
        if not self.fixed_gammas or min(self.fixed_gammas) < 1:
            raise ConfigError(f"Expected live.fixed_gammas to list lengths of 1 or more, got {self.fixed_gammas}.")
