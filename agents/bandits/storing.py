# SPDX-License-Identifier: Apache-2.0
"""How online learners are stored and brought back: the same for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.bandits.base import Bandit
from agents.bandits.linear import Features, Scaling
from agents.bandits.neural import LastHidden
from agents.parts import Parts
from speckv.errors import CheckpointError

CONTEXTS = ("none", "scaled", "network")
"""What a learner sees of an observation: nothing, all features scaled, or a fitted network's last hidden layer."""
_FEATURES = "features"


@dataclass(frozen=True, slots=True)
class StoredBandit:
    """Takes a learner of one kind apart and, called, puts it together.

    Attributes:
        kind: Its class.
        context: One of `CONTEXTS`.
    """

    kind: Callable[..., Bandit]
    context: str = "none"

    def take_apart(self, bandit: Any) -> Parts:
        """What is needed besides settings to put it together."""
        arrays = bandit.get_arrays() | {"seed": np.array(bandit.seed)}
        if self.context == "scaled":
            arrays |= {"mean": bandit.features.mean, "std": bandit.features.std}
        networks = {_FEATURES: bandit.features.network} if self.context == "network" else {}
        return Parts(networks=networks, times=bandit.times, arrays=arrays)

    def __call__(self, settings: Any, parts: Parts) -> Bandit:
        """Makes the stored learner.

        Raises:
            CheckpointError: if something is missing.
        """
        times = parts.needed_times()
        try:
            seen = () if self.context == "none" else (_features(self.context, parts),)
            bandit = self.kind(settings, times, *seen, 0)
            bandit.set_arrays(parts.arrays)
            bandit.reseed(int(parts.arrays["seed"]))
        except KeyError as error:
            raise CheckpointError(f"Expected an array {error} of a bandit, found none. Train again.") from error
        return bandit


def _features(context: str, parts: Parts) -> Features:
    if context == "network":
        return LastHidden(parts.network(_FEATURES))
    return Scaling(mean=parts.arrays["mean"], std=parts.arrays["std"])
