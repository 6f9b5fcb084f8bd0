# SPDX-License-Identifier: Apache-2.0
"""What a learner meets where that is other than what it is tested on: studies of generalisation and of data."""

from dataclasses import dataclass

from speckv.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnSettings:
    """Left as it is, learning takes the train prompts of `data`, on the clock of `cost`.

    Attributes:
        traces: Name of a shipped trace or path of one to learn from.
        compressions: To learn from.
        tasks: To learn from.
        prompts: Train prompts of each task to learn from, always the same ones; validation prompts stay as they are.
        cost: Name or path of the cost table to learn on.
        reclock: Whether a controller that carries the times of steps is given those of `cost` for the test, of new
            compressions too.
    """

    traces: str | None = None
    compressions: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    prompts: int | None = None
    cost: str | None = None
    reclock: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.prompts is not None and self.prompts < 1:
            raise ConfigError(f"Expected learn.prompts 1 or more, or null, got {self.prompts}.")

    @property
    def changes(self) -> bool:
        """Whether anything is other than it is tested."""
        return self != LearnSettings()
