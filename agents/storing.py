# SPDX-License-Identifier: Apache-2.0
"""Storage of agents' controllers as settings and arrays, from which their class makes them again."""

from typing import TYPE_CHECKING, Any, ClassVar, Self

from speckv.agents.building import build_settings
from speckv.cost.times import StepTimes
from speckv.runtime.state import ControllerState

if TYPE_CHECKING:
    from speckv.agents.registry import TrainingData


class StoredController:
    """A controller that settings alone decide; classes with more than settings override `state` and `from_state`.

    Classes without `kind`, a name in the registry, are not stored.
    """

    kind: ClassVar[str]
    settings_class: ClassVar[type[Any]]
    settings: Any

    @classmethod
    def variant(cls, settings: Any) -> type[Self]:  # noqa: ARG003 - some look at them
        """Returns the class for some settings, where they decide which."""
        return cls

    @classmethod
    def make(cls, settings: Any, data: "TrainingData") -> Self:  # noqa: ARG003 - some need it
        """Makes a new controller."""
        return cls.variant(settings)(settings)  # type: ignore[call-arg]

    def state(self) -> ControllerState:
        """Returns all that `from_state` needs."""
        return ControllerState.of(self.settings)

    @classmethod
    def from_state(cls, state: ControllerState) -> Self:
        """Makes the controller that returned a state."""
        settings = cls.settings_of(state)
        return cls.variant(settings)(settings)  # type: ignore[call-arg]

    @classmethod
    def settings_of(cls, state: ControllerState) -> Any:
        """Returns the checked settings of a state."""
        return build_settings(cls.settings_class, state.settings, "agent")

    def with_times(self, times: StepTimes) -> Self:
        """Returns the controller with the times of another machine."""
        return type(self).from_state(self.state().with_times(times))
