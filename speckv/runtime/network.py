# SPDX-License-Identifier: Apache-2.0
"""A small tanh network in NumPy: a few microseconds an observation, no allocation."""

from collections.abc import Sequence

import numpy as np

from speckv.types import FloatArray


def fold(
    mean: FloatArray, std: FloatArray, weights: Sequence[FloatArray], biases: Sequence[FloatArray]
) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
    """Weights and biases that act on raw observations: the normalisation is folded into the first layer.

    W((x - mean) / std) + b = (W / std) x + (b - (W / std) mean); computed in float64.

    >>> one = np.ones(1, np.float32)
    >>> fold(3 * one, 2 * one, [np.ones((1, 1), np.float32)], [one])
    ((array([[0.5]], dtype=float32),), (array([-0.5], dtype=float32),))
    """
    first = weights[0].astype(np.float64) / std
    bias = biases[0] - first @ mean.astype(np.float64)
    return (first.astype(np.float32), *weights[1:]), (bias.astype(np.float32), *biases[1:])


class Network:
    """Layers with tanh between them; weights have shape [outputs, inputs]. Not for use from two threads at once."""

    def __init__(self, weights: Sequence[FloatArray], biases: Sequence[FloatArray]) -> None:
        self.weights, self.biases = tuple(weights), tuple(biases)
        self._input = np.zeros(self.weights[0].shape[1], np.float32)
        self._layers = [np.zeros_like(bias) for bias in self.biases]

    def one(self, observation: FloatArray) -> FloatArray:
        """Outputs for one observation of shape [features], in a buffer that the next call overwrites."""
        np.copyto(self._input, observation)
        values, last = self._input, len(self._layers) - 1
        for index, out in enumerate(self._layers):
            np.dot(self.weights[index], values, out=out)
            np.add(out, self.biases[index], out=out)
            if index < last:
                np.tanh(out, out=out)
            values = out
        return values

    def batch(self, observations: FloatArray) -> FloatArray:
        """Outputs of shape [rows, outputs] for observations of shape [rows, features]."""
        values = observations.astype(np.float32, copy=False)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weight.T + bias
            if index < len(self.weights) - 1:
                values = np.tanh(values)
        return values
