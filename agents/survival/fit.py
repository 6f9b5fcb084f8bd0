# SPDX-License-Identifier: Apache-2.0
"""Fits a small network to outcomes between no and yes, with PyTorch; what comes out is NumPy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from agents.survival.samples import Samples
from agents.survival.settings import FitOptions
from speckv.observation import hidden_columns, hide_from
from speckv.runtime.network import Network, fold
from speckv.types import FloatArray

MIN_STD = 1e-3


def fit_probabilities(samples: Samples, settings: FitOptions, *, seed: int, hide: Sequence[str] = ()) -> Network:
    """Fits the log-odds of each outcome by maximum likelihood.

    Args:
        samples: Inputs and outcomes.
        settings: Of network and optimiser.
        seed: Of weights and minibatches; PyTorch's own global generator is left alone.
        hide: Features, or groups of them, that the network is not to see.

    Returns:
        A network on raw inputs; the logistic function of an output is a probability.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = samples.inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = samples.inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    std = np.where(deviation < MIN_STD, np.float32(1.0), deviation).astype(np.float32)
    if hide:
        mean, std = hide_from(mean, std, hidden_columns(hide))
    inputs = torch.from_numpy((samples.inputs - mean) / std)
    labels, known = torch.from_numpy(samples.labels), torch.from_numpy(samples.known)
    sizes = [inputs.shape[1], *settings.hidden, labels.shape[1]]
    layers = [_layer(a, b, generator) for a, b in itertools.pairwise(sizes)]
    # Outcomes start at their frequencies, so that the first steps are not spent on finding those.
    frequency = ((labels * known).sum(0) / known.sum(0).clamp(min=1)).clamp(1e-3, 1 - 1e-3)
    layers[-1].bias.data = torch.log(frequency / (1 - frequency))
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = min(settings.batch_size, len(inputs))
    total = settings.epochs * (len(inputs) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.5 * (1 + math.cos(math.pi * k / total)))
    for _ in range(settings.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for begin in range(0, size * (len(inputs) // size), size):
            rows = order[begin : begin + size]
            loss = F.binary_cross_entropy_with_logits(_forward(layers, inputs[rows]), labels[rows], known[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    weights, biases = ([_array(getattr(layer, name)) for layer in layers] for name in ("weight", "bias"))
    return Network(*fold(mean, std, weights, biases))


def _layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _forward(layers: list[nn.Linear], values: torch.Tensor) -> torch.Tensor:
    for layer in layers[:-1]:
        values = torch.tanh(layer(values))
    last: torch.Tensor = layers[-1](values)
    return last


def _array(tensor: torch.Tensor) -> FloatArray:
    return np.array(tensor.detach().numpy(), np.float32)
