# SPDX-License-Identifier: Apache-2.0
"""How online learners are begun, shown the train prompts, stored and brought back: the same for all of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agents.bandits.base import Bandit
from agents.bandits.linear import Features, Scaling, measure_scaling
from agents.bandits.neural import LastHidden
from agents.parts import Parts
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.errors import CheckpointError
from speckv.evaluation.compare import compile_pair
from speckv.replay import replay_stream
from speckv.traces import TraceSet

CONTEXTS = ("none", "scaled", "network")
"""What a learner sees of an observation: nothing, all features scaled, or a fitted network's last hidden layer."""
_FEATURES = "features"


def begin(
    kind: Callable[..., Bandit], context: str, settings: Any, train: TraceSet, cost: CostTable, seed: int
) -> Bandit:
    """Makes a learner that has learned nothing yet, but for how observations become features.

    Args:
        kind: Its class.
        context: One of `CONTEXTS`.
        settings: Its settings.
        train: Train prompts; scales and networks come from them.
        cost: The clock.
        seed: Of its draws and of the network.
    """
    times = StepTimes.of(cost, train.compressions, gamma_max=train.metadata.gamma_max)
    if context == "none":
        return kind(settings, times, seed)
    if context == "scaled":
        return kind(settings, times, measure_scaling(*compile_pair(train, cost)), seed)
    from agents.survival.train import fit_survival  # late, because PyTorch takes seconds to import

    fitted = fit_survival(train, cost, settings.network(), seed=seed)
    return kind(settings, times, LastHidden(fitted.before), seed)


def show(bandit: Bandit, train: TraceSet, cost: CostTable, seed: int) -> None:
    """Lets a learner decode the train prompts once, in a random order; its draws begin anew afterwards."""
    compiled, compiled_cost = compile_pair(train, cost)
    order = np.random.default_rng(seed).permutation(len(compiled)).tolist()
    replay_stream(bandit, compiled, compiled_cost, order=order)
    bandit.reseed(seed)


def take_apart(bandit: Any, context: str) -> Parts:
    """What `put_together` needs besides settings."""
    arrays = bandit.get_arrays() | {"seed": np.array(bandit.seed)}
    if context == "scaled":
        arrays |= {"mean": bandit.features.mean, "std": bandit.features.std}
    networks = {_FEATURES: bandit.features.network} if context == "network" else {}
    return Parts(networks=networks, times=bandit.times, arrays=arrays)


def put_together(kind: Callable[..., Bandit], context: str, settings: Any, parts: Parts) -> Bandit:
    """Makes the stored learner.

    Raises:
        CheckpointError: if something is missing.
    """
    times = parts.needed_times()
    try:
        seen = () if context == "none" else (_features(context, parts),)
        bandit = kind(settings, times, *seen, 0)
        bandit.set_arrays(parts.arrays)
        bandit.reseed(int(parts.arrays["seed"]))
    except KeyError as error:
        raise CheckpointError(f"Expected an array {error} of a bandit, found none. Train again.") from error
    return bandit


def _features(context: str, parts: Parts) -> Features:
    if context == "network":
        return LastHidden(parts.network(_FEATURES))
    return Scaling(mean=parts.arrays["mean"], std=parts.arrays["std"])
