# SPDX-License-Identifier: Apache-2.0
"""NeuralLinear: linear Thompson sampling on what a fitted network makes of the observation."""

import numpy as np
from numpy.typing import NDArray

from agents.bandits.linear import LinThompson
from agents.bandits.settings import NeuralLinearSettings
from speckv.cost.times import StepTimes
from speckv.runtime.network import Network
from speckv.types import FloatArray

Float64 = NDArray[np.float64]


class LastHidden:
    """What the last hidden layer of a network says, a constant feature last.

    Args:
        network: Two layers or more, tanh between them.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._hidden = Network(network.weights[:-1], network.biases[:-1])

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self._hidden.biases[-1]) + 1

    def features(self, observation: FloatArray) -> Float64:
        """Shape [dimension]."""
        return np.append(np.tanh(self._hidden.one(observation)), 1.0).astype(np.float64)


class NeuralLinear(LinThompson):
    """Draws each arm's value from a linear posterior over learned features and plays the greatest.

    The features are the last hidden layer of the network that `survival` fits on train prompts; they stay as they are,
    the posterior goes on online.

    Source:
        Riquelme, Tucker and Snoek 2018, arXiv:1802.09127 (NeuralLinear): one Bayesian regression of the reward an arm
        on the last layer. There the network is trained on the rewards themselves, again and again, and the noise has an
        inverse-gamma posterior; here the network learned survival, once, and `width` stands for the noise's deviation.
        Smaller arms learn too, as in the other linear bandits.
    """

    def __init__(self, settings: NeuralLinearSettings, times: StepTimes, features: LastHidden, seed: int) -> None:
        super().__init__(settings, times, features, seed)
        self.name = "neural-linear"
