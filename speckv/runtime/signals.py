# SPDX-License-Identifier: Apache-2.0
"""Signals of a distribution, from a row of scores, with NumPy alone: for libraries that hand out arrays."""

import numpy as np
from numpy.typing import NDArray


def signals_of_logits(logits: NDArray[np.floating], temperature: float = 1.0) -> tuple[float, float, float]:
    """Entropy in nats, top-1 probability and top-1 minus top-2 probability of softmax(logits / temperature).

    Logits of shape [vocabulary] may be minus infinity; NaN gives NaN. Greedy decoding has a temperature of 1.

    >>> [round(value, 4) for value in signals_of_logits(np.log([0.5, 0.25, 0.25]))]
    [1.0397, 0.5, 0.25]
    """
    scaled = np.asarray(logits, np.float32)
    if temperature != 1.0:
        scaled = scaled / np.float32(temperature)
    place = int(scaled.argmax())
    shifted = scaled - scaled[place]
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    # Minus infinity times its weight of zero is NaN, so impossible tokens are taken as merely unlikely.
    entropy = float(np.log(total)) - float(np.dot(weights, np.maximum(shifted, np.float32(-1e4)))) / total
    weights[place] = 0.0
    return max(entropy, 0.0), 1.0 / total, (1.0 - float(weights.max())) / total
