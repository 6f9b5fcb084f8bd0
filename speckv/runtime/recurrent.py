# SPDX-License-Identifier: Apache-2.0
"""A trained policy with a memory, an LSTM in NumPy: one state a request, moved on by every decision.

On disk it looks like a policy without one: a card and arrays.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speckv.errors import CheckpointError, SchemaError
from speckv.observation import SCHEMA, ObservationSchema
from speckv.runtime.card import CARD, read_fields, read_network_card, save_policy
from speckv.runtime.network import Network, fold
from speckv.runtime.policy import NOT_FINITE, STEP_ENVIRONMENT
from speckv.types import BoolArray, DecodedSteps, FloatArray, IntArray, StepOutcome

FORMAT = "speckv-recurrent-policy"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LstmPolicy:
    """An LSTM from a raw observation and a state to one score per gamma, through tanh layers.

    Attributes:
        name: Shown in tables.
        schema: What it reads.
        gammas: Speculation length, in tokens, that each output stands for.
        mean: Shape [features]; subtracted from a raw observation.
        std: Shape [features], above zero; divides it then.
        input_weight: Shape [4 * units, features]; rows of the input, forget, cell and output gate, in PyTorch's order.
        state_weight: Shape [4 * units, units].
        gate_bias: Shape [4 * units].
        weights: Of the layers behind it: one matrix a layer, of shape [outputs, inputs].
        biases: One vector a layer, of shape [outputs].
        provenance: Where it came from: traces, cost table, seed, versions.
    """

    name: str
    schema: ObservationSchema
    gammas: tuple[int, ...]
    mean: FloatArray
    std: FloatArray
    input_weight: FloatArray
    state_weight: FloatArray
    gate_bias: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
    provenance: Mapping[str, str | int | float]

    def __post_init__(self) -> None:
        """Checks that the arrays fit each other, the schema and the gammas."""
        units, features = self.state_weight.shape[-1], self.schema.size
        sizes = [units, *(len(b) for b in self.biases)]
        wanted = [(4 * units, features), (4 * units, units), (4 * units,), (features,), (features,)]
        wanted += [(rows, columns) for columns, rows in itertools.pairwise(sizes)]
        single = (self.input_weight, self.state_weight, self.gate_bias, self.mean, self.std)
        shapes = [a.shape for a in (*single, *self.weights)]
        if shapes != wanted or sizes[-1] != len(self.gammas) or not self.weights or not np.all(self.std > 0):
            raise CheckpointError(
                f"Expected arrays of shapes {wanted} that end in {len(self.gammas)} gammas, and positive deviations, "
                f"got shapes {shapes}. Export the policy again."
            )
        if not all(np.isfinite(a).all() for a in (*single, *self.weights, *self.biases)):
            raise CheckpointError("Expected finite weights, got NaN or infinity: the training diverged. Train again.")

    def save(self, folder: Path | str) -> None:
        """Writes the two files, each atomically, the card last."""
        save_policy(
            Path(folder),
            self,
            _SINGLE,
            kind=FORMAT,
            version=FORMAT_VERSION,
            environment=STEP_ENVIRONMENT,
            schema=self.schema.to_json(),
        )

    @staticmethod
    def load(folder: Path | str) -> "LstmPolicy":
        """Reads a policy.

        Raises:
            CheckpointError: if a file is missing, damaged or of another format version.
            SchemaError: naming the first difference, if the policy reads another observation.
        """
        folder = Path(folder)
        card = read_network_card(folder / CARD, FORMAT, FORMAT_VERSION)
        schema = ObservationSchema.from_json(json.dumps(card["observation_schema"]))
        SCHEMA.require_same(schema)
        return LstmPolicy(schema=schema, **read_fields(folder, card, _SINGLE))


_SINGLE = ("mean", "std", "input_weight", "state_weight", "gate_bias")


class LstmController:
    """Decides with an exported policy that remembers: ask it exactly once a decode step of each request.

    Ties go to the smaller gamma index, as in every comparison of this project.
    """

    charges_decision = True

    def __init__(self, policy: LstmPolicy, *, name: str | None = None) -> None:
        self.name = name or policy.name
        self.policy = policy
        self._lookup = np.array(policy.gammas, np.int64)
        (input_weight,), (bias,) = fold(policy.mean, policy.std, [policy.input_weight], [policy.gate_bias])
        self._input_weight, self._bias = np.ascontiguousarray(input_weight.T), bias
        self._state_weight = np.ascontiguousarray(policy.state_weight.T)
        self._head = Network(policy.weights, policy.biases)
        self.reset()

    @staticmethod
    def load(folder: Path | str, *, name: str | None = None) -> "LstmController":
        """Reads a policy from its folder; raises what `LstmPolicy.load` raises."""
        return LstmController(LstmPolicy.load(folder), name=name)

    def reset(self) -> None:
        """Begins one request and forgets all others."""
        self.start(1)

    def start(self, num_requests: int) -> None:
        """Begins that many requests and forgets all others."""
        units = self.policy.state_weight.shape[1]
        self._hidden: FloatArray = np.zeros((num_requests, units), np.float32)
        self._cell: FloatArray = np.zeros((num_requests, units), np.float32)

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Remembers nothing: the next observation tells, and deciding moves the state on."""

    def learn(self, outcome: StepOutcome) -> None:
        """Ignored: the policy is fixed."""

    def act(self, observation: FloatArray) -> int:
        """Returns gamma in tokens for one raw observation of shape [features], of the only request."""
        return int(self.act_batch(observation[np.newaxis])[0])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each request, and moves each one's state on.

        Raises:
            SchemaError: if an observation has another size or holds NaN, or there is not one for each request.
        """
        wanted = (len(self._hidden), self.policy.schema.size)
        if observations.shape != wanted:
            raise SchemaError(f"Expected observations of shape {wanted}, got {observations.shape}.")
        scores = self.scores(observations)
        if np.isnan(scores).any():
            raise SchemaError(NOT_FINITE)
        chosen: IntArray = self._lookup[scores.argmax(axis=1)]
        return chosen

    def scores(self, observations: FloatArray) -> FloatArray:
        """Scores of shape [requests, gammas], moving each request's state on.

        Source:
            Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000, as in PyTorch's `LSTM`.
        """
        gates = observations @ self._input_weight + self._hidden @ self._state_weight + self._bias
        opens_input, keeps, candidate, opens_output = np.split(gates, 4, axis=1)
        self._cell = _sigmoid(keeps) * self._cell + _sigmoid(opens_input) * np.tanh(candidate)
        self._hidden = _sigmoid(opens_output) * np.tanh(self._cell)
        return self._head.batch(self._hidden)


def _sigmoid(values: FloatArray) -> FloatArray:
    # Through tanh, which overflows nowhere.
    halved: FloatArray = 0.5 * np.tanh(0.5 * values) + 0.5
    return halved.astype(np.float32, copy=False)
