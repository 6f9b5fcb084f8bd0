# SPDX-License-Identifier: Apache-2.0
"""Controllers that decide by a trained network in NumPy: tanh layers, or an LSTM with tanh layers behind it."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from speckv.errors import CheckpointError, ConfigError, SchemaError
from speckv.observation import SCHEMA, STOPPING_SCHEMA, ObservationSchema, observe_draft, summarise_draft
from speckv.runtime.constant import Memoryless
from speckv.runtime.network import Network, fold
from speckv.runtime.state import ControllerState, tokens
from speckv.types import NUM_SIGNALS, BoolArray, DecodedSteps, FloatArray, IntArray, StepOutcome

STEP_ENVIRONMENT = "SpecKV/GammaSelection-v0"
STOPPING_ENVIRONMENT = "SpecKV/DraftStopping-v0"
_NOT_FINITE = "Expected a finite observation, got NaN. Check the signals it was computed from."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MlpPolicy:
    """A tanh network from a normalised observation, (raw - mean) / std, to one score for each of `gammas`.

    With `STOPPING_SCHEMA` it decides token by token. Weights have shape [outputs, inputs].
    """

    name: str
    schema: ObservationSchema = SCHEMA
    gammas: tuple[int, ...]
    mean: FloatArray
    std: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        """Checks that the arrays fit each other, the schema and the gammas."""
        sizes = [self.schema.size, *(len(b) for b in self.biases)]
        wanted = [(rows, columns) for columns, rows in itertools.pairwise(sizes)]
        shapes = [w.shape for w in self.weights]
        if shapes != wanted or sizes[-1] != len(self.gammas) or not self.weights:
            raise CheckpointError(
                f"Expected layers of shapes {wanted} that end in {len(self.gammas)} gammas, got {shapes}. Export again."
            )
        if self.mean.shape != (self.schema.size,) or self.std.shape != self.mean.shape or not np.all(self.std > 0):
            raise CheckpointError(
                f"Expected {self.schema.size} normalisation means and positive deviations, got shapes "
                f"{self.mean.shape} and {self.std.shape}. Export again."
            )
        _require_finite(self.mean, self.std, *self.weights, *self.biases)

    @property
    def inside_steps(self) -> bool:
        """Whether it decides token by token."""
        return self.schema.size == STOPPING_SCHEMA.size

    @property
    def environment(self) -> str:
        """Id of the environment that it decides in."""
        return STOPPING_ENVIRONMENT if self.inside_steps else STEP_ENVIRONMENT

    def folded(self) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
        """Weights and biases that act on raw observations."""
        return fold(self.mean, self.std, self.weights, self.biases)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LstmPolicy:
    """An LSTM from a normalised observation and a state to one score for each of `gammas`, through tanh layers.

    Attributes:
        input_weight: Shape [4 * units, features]; rows of the input, forget, cell and output gate, in PyTorch's order.
        state_weight: Shape [4 * units, units].
        gate_bias: Shape [4 * units].
    """

    name: str
    gammas: tuple[int, ...]
    mean: FloatArray
    std: FloatArray
    input_weight: FloatArray
    state_weight: FloatArray
    gate_bias: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]

    environment = STEP_ENVIRONMENT

    def __post_init__(self) -> None:
        """Checks that the arrays fit each other, the observation and the gammas."""
        units, features = self.state_weight.shape[-1], SCHEMA.size
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
        _require_finite(*single, *self.weights, *self.biases)


NetworkPolicy = MlpPolicy | LstmPolicy


def controller_of(policy: NetworkPolicy, *, name: str | None = None) -> "PolicyController | LstmController":
    """Returns the controller that decides with a network."""
    if isinstance(policy, LstmPolicy):
        return LstmController(policy, name=name)
    return (StoppingPolicyController if policy.inside_steps else PolicyController)(policy, name=name)


def _require_finite(*arrays: FloatArray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise CheckpointError("Expected finite weights, got NaN or infinity: the training diverged. Train again.")


def _state(policy: NetworkPolicy, settings: dict[str, Any], *single: str) -> ControllerState:
    layers = Network(policy.weights, policy.biases)
    return ControllerState.of(
        {"gammas": list(policy.gammas), "activation": "tanh", **settings},
        networks={"layers": layers},
        arrays={name: getattr(policy, name) for name in ("mean", "std", *single)},
    )


def _fields(state: ControllerState, *, reads_observations: bool) -> dict[str, Any]:
    if state.settings["activation"] != "tanh":
        raise ConfigError(f"expected activation 'tanh', got {state.settings['activation']!r}")
    layers = state.network("layers", reads_observations=reads_observations)
    return {
        "name": "",
        "gammas": tuple(map(tokens, state.settings["gammas"])),
        "mean": state.by_feature("mean"),
        "std": state.by_feature("std", fill=1.0),
        "weights": layers.weights,
        "biases": layers.biases,
    }


class PolicyController(Memoryless):
    """Decides with a tanh network, without allocation; not for use from two threads at once.

    Ties go to the smaller gamma index.
    """

    kind = "mlp"
    charges_decision = True

    def __init__(self, policy: MlpPolicy, *, name: str | None = None) -> None:
        self.name = name or policy.name
        self.policy = policy
        self._gammas = list(policy.gammas)
        self._lookup = np.array(policy.gammas, np.int64)
        self._network = Network(*policy.folded())

    def state(self) -> ControllerState:
        """Returns the network."""
        return _state(self.policy, {"inside_steps": self.policy.inside_steps})

    @classmethod
    def from_state(cls, state: ControllerState) -> "PolicyController":
        """Makes the stored controller."""
        schema = STOPPING_SCHEMA if state.settings["inside_steps"] else SCHEMA
        policy = MlpPolicy(schema=schema, **_fields(state, reads_observations=True))
        return StoppingPolicyController(policy) if policy.inside_steps else PolicyController(policy)

    def act(self, observation: FloatArray) -> int:
        """Returns gamma in tokens for one raw observation of shape [features]."""
        if observation.shape != (self.policy.schema.size,):
            raise SchemaError(f"Expected {self.policy.schema.size} observation fields, got shape {observation.shape}.")
        values = self._network.one(observation)
        best = int(values.argmax())
        # argmax returns the first NaN, and NaN alone differs from itself.
        if values[best] != values[best]:
            raise SchemaError(_NOT_FINITE)
        return self._gammas[best]

    def scores(self, observations: FloatArray) -> FloatArray:
        """Scores of shape [rows, gammas] for raw observations of shape [rows, features]."""
        return self._network.batch(observations)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each row; equal to `act` on that row unless two scores agree to rounding."""
        if observations.ndim != 2 or observations.shape[1] != self.policy.schema.size:
            raise SchemaError(
                f"Expected [rows, {self.policy.schema.size}] observations, got shape {observations.shape}."
            )
        return _best(self.scores(observations), self._lookup)


class StoppingPolicyController(PolicyController):
    """Decides token by token: the policy's first output verifies, its second drafts on, up to its greatest gamma."""

    kind = PolicyController.kind

    def __init__(self, policy: MlpPolicy, *, name: str | None = None) -> None:
        super().__init__(policy, name=name)
        self._observed = np.zeros(policy.schema.size, np.float32)
        self._observed[SCHEMA.size :] = summarise_draft(np.zeros((1, 0, NUM_SIGNALS)))[0, 0]

    def act(self, observation: FloatArray) -> int:
        """Returns the most tokens to draft, or 0, for one observation of shape [features], before a step."""
        if observation.shape != (SCHEMA.size,):
            raise SchemaError(f"Expected {SCHEMA.size} observation fields, got shape {observation.shape}.")
        self._observed[: SCHEMA.size] = observation
        return super().act(self._observed)

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns the same for each row."""
        nothing = np.broadcast_to(self._observed[SCHEMA.size :], (len(observations), self._observed.size - SCHEMA.size))
        return super().act_batch(observe_draft(observations, np.asarray(nothing, np.float32)))

    def go_on(self, observation: FloatArray) -> bool:
        """Returns whether to draft another token."""
        return super().act(observation) > 0

    def go_on_batch(self, observations: FloatArray) -> BoolArray:
        """Returns the same for each row."""
        goes_on: BoolArray = super().act_batch(observations) > 0
        return goes_on


class LstmController:
    """Decides with an LSTM that keeps one state a request, moved on by every decision: exactly one a decode step."""

    kind = "lstm"
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

    def state(self) -> ControllerState:
        """Returns the network, without the states of requests."""
        return _state(self.policy, {}, "input_weight", "state_weight", "gate_bias")

    @classmethod
    def from_state(cls, state: ControllerState) -> "LstmController":
        """Makes the stored controller."""
        return cls(
            LstmPolicy(
                input_weight=state.by_feature("input_weight"),
                state_weight=state.array("state_weight"),
                gate_bias=state.array("gate_bias"),
                **_fields(state, reads_observations=False),
            )
        )

    def reset(self) -> None:
        """Begins one request and forgets all others."""
        self.start(1)

    def start(self, num_requests: int) -> None:
        """Begins that many requests and forgets all others."""
        units = self.policy.state_weight.shape[1]
        self._hidden: FloatArray = np.zeros((num_requests, units), np.float32)
        self._cell: FloatArray = np.zeros((num_requests, units), np.float32)

    def remember(self, step: DecodedSteps, where: BoolArray) -> None:
        """Ignored: the next observation holds the outcome, and deciding moves the state on."""

    def learn(self, outcome: StepOutcome) -> None:
        """Ignored: the policy is fixed."""

    def act(self, observation: FloatArray) -> int:
        """Returns gamma in tokens for one raw observation of shape [features], of the only request."""
        return int(self.act_batch(observation[np.newaxis])[0])

    def act_batch(self, observations: FloatArray) -> IntArray:
        """Returns gamma for each request, and moves each one's state on."""
        wanted = (len(self._hidden), SCHEMA.size)
        if observations.shape != wanted:
            raise SchemaError(f"Expected observations of shape {wanted}, got {observations.shape}.")
        return _best(self.scores(observations), self._lookup)

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


def _best(scores: FloatArray, gammas: IntArray) -> IntArray:
    if np.isnan(scores).any():
        raise SchemaError(_NOT_FINITE)
    chosen: IntArray = gammas[scores.argmax(axis=1)]
    return chosen


def _sigmoid(values: FloatArray) -> FloatArray:
    # Through tanh, which overflows nowhere.
    halved: FloatArray = 0.5 * np.tanh(0.5 * values) + 0.5
    return halved.astype(np.float32, copy=False)
