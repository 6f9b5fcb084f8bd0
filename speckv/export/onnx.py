# SPDX-License-Identifier: Apache-2.0
"""A policy as an ONNX graph from raw observations to one decision a row, for hosts in C++ or Java."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speckv.errors import CheckpointError, ConfigError
from speckv.files import write_atomically
from speckv.observation import BITS_SCALE, LAG_HORIZON, SCHEMA, STOPPING_SCHEMA
from speckv.observation.features import GAMMA_SCALE
from speckv.runtime import Policy
from speckv.runtime.learned import PolicyController
from speckv.runtime.state import ControllerState
from speckv.types import BITS_PER_WEIGHT, FloatArray

MODEL = "policy.onnx"
OPSET = 18
_IR_VERSION = 9
"""Readable by runtimes from 2023 on."""
SURVIVAL = "survival_stopping"
_LEAST_SURVIVAL = 1e-6
_NEVER = -1


def write_onnx(policy: Policy, folder: Path) -> list[Path]:
    """Writes `policy.onnx`: `observation` of shape [rows, features] -> `gamma` (int64) and `scores`, both by row.

    For a policy that decides token by token, gamma is 0 where it verifies and its greatest gamma where it drafts on.
    `scores` of the supervised one are the log-odds that the next token is accepted.

    Raises:
        CheckpointError: if the policy is neither a network without memory nor the supervised one, token by token.
        ConfigError: if the package `onnx` is not installed.
    """
    controller: Any = policy.controller
    survival = getattr(controller, "kind", "") == SURVIVAL
    if not survival and not isinstance(controller, PolicyController):
        raise CheckpointError(
            f"Expected a policy that is one network (ppo, a2c, dqn, qr_dqn) or {SURVIVAL}, got {policy.name!r}. "
            "Export it with --to policy, which runs with NumPy alone."
        )
    try:
        graph = _Graph()
    except ImportError as error:
        raise ConfigError("Expected the package onnx, found none: pip install onnx.") from error
    if survival:
        names, outputs = STOPPING_SCHEMA.names, _survival(graph, controller.state())
    else:
        names, outputs = controller.policy.schema.names, _network(graph, controller)
    path = folder / MODEL
    write_atomically(path, graph.model(policy.name, names, outputs))
    return [path]


class _Graph:
    """A graph under construction; values are referred to by name."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Adds a constant."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Adds an operation and returns the name of its output."""
        out = out or f"value_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [out], **attributes))
        return out

    def columns(self, first: int, last: int) -> str:
        """Columns of the observation, the last one excluded."""
        bounds = (self.constant(np.array([place], np.int64)) for place in (first, last, 1))
        return self.add("Slice", "observation", *bounds)

    def network(self, value: str, weights: Sequence[FloatArray], biases: Sequence[FloatArray], *, out: str = "") -> str:
        """Adds layers with tanh between them."""
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            value = self.add("Tanh", self.add("Gemm", value, self.constant(weight), self.constant(bias), transB=1))
        return self.add("Gemm", value, self.constant(weights[-1]), self.constant(biases[-1]), out=out, transB=1)

    def float64(self, value: str) -> str:
        """Adds a cast to float64, in which times are compared."""
        return self.add("Cast", value, to=self._onnx.TensorProto.DOUBLE)

    def model(self, name: str, features: Sequence[str], outputs: int) -> bytes:
        """The checked model."""
        onnx, tensor = self._onnx, self._onnx.helper.make_tensor_value_info
        types = onnx.TensorProto
        graph = onnx.helper.make_graph(
            self._nodes,
            name,
            [tensor("observation", types.FLOAT, ["rows", len(features)])],
            [tensor("gamma", types.INT64, ["rows"]), tensor("scores", types.FLOAT, ["rows", outputs])],
            self._constants,
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
        )
        onnx.helper.set_model_props(model, {"speckv": json.dumps({"name": name, "features": list(features)})})
        onnx.checker.check_model(model)
        serialized: bytes = model.SerializeToString()
        return serialized


def _network(graph: _Graph, controller: PolicyController) -> int:
    gammas = np.array(controller.policy.gammas, np.int64)
    graph.network("observation", *controller.policy.folded(), out="scores")
    place = graph.add("ArgMax", "scores", axis=1, keepdims=0)
    graph.add("Gather", graph.constant(gammas), place, out="gamma")
    return len(gammas)


def _survival(g: _Graph, state: ControllerState) -> int:
    """The rule of `speckv.agents.survival.controllers`, for a row before a step or behind a drafted token."""
    times, before, inside = state.times(), state.network("before"), state.network("inside")
    size = len(before.biases[-1])
    steps = np.arange(size)
    axis = g.constant(np.array([1], np.int64))
    bits = np.array([BITS_PER_WEIGHT[name] / BITS_SCALE for name in times.compressions], np.float32)
    place = SCHEMA.index("bits_per_weight")
    which = g.add(
        "ArgMin", g.add("Abs", g.add("Sub", g.columns(place, place + 1), g.constant(bits))), axis=1, keepdims=0
    )

    def of_compression(values: NDArray[Any]) -> str:
        return g.add("Gather", g.constant(values), which)

    place = STOPPING_SCHEMA.index("depth")
    scaled = g.add("Mul", g.columns(place, place + 1), g.constant(np.array(GAMMA_SCALE, np.float32)))
    depth = g.add("Cast", g.add("Round", scaled), to=7)  # int64

    # Before the step: survival never rises; lambda is the highest rate of tokens.
    scores = g.network(g.columns(0, SCHEMA.size), before.weights, before.biases)
    chances = g.add("Unsqueeze", g.add("Sigmoid", g.float64(scores)), axis)
    later = g.constant(np.where(steps[None, :] > steps[:, None], 2.0, 0.0))
    survival = g.add("ReduceMin", g.add("Add", chances, later), g.constant(np.array([2], np.int64)), keepdims=0)
    counted = g.constant((steps[:, None] < np.arange(size + 1)[None, :]).astype(np.float64))
    tokens = g.add("Add", g.add("MatMul", survival, counted), g.constant(np.ones(1)))
    drafted = np.arange(times.verify_s.shape[1])
    step_s = times.verify_s + drafted * times.draft_s[:, None] + times.controller_s
    place = SCHEMA.index("draft_lag")
    lag = g.add("Mul", g.float64(g.columns(place, place + 1)), g.constant(np.array(float(LAG_HORIZON))))
    lag_s = times.lag_s[:, None] * (np.arange(size + 1) > 0)
    seconds = g.add("Add", of_compression(step_s[:, : size + 1]), g.add("Mul", lag, of_compression(lag_s)))
    rates = g.add("Div", tokens, seconds)
    pays = g.add("Greater", g.add("ArgMax", rates, axis=1, keepdims=0), g.constant(np.array(0, np.int64)))
    floor = of_compression(state.array("floor").astype(np.int64))
    starts = g.add("Or", pays, g.add("Greater", floor, g.constant(np.array(0, np.int64))))

    # Inside it: does drafting some number of tokens more pay?
    chance = g.add("Sigmoid", g.float64(g.network("observation", inside.weights, inside.biases, out="scores")))
    more_s = np.diff(times.verify_s, axis=1) + times.draft_s[:, None] + times.controller_s
    summed = np.cumsum(more_s[:, :size], axis=1) * state.array("price_scale")[:, None]
    price = g.add("Mul", g.add("ReduceMax", rates, axis, keepdims=1), of_compression(summed))
    zero, places = g.constant(np.zeros(1)), g.constant(steps.astype(np.int64))
    ahead = g.add("Where", g.add("GreaterOrEqual", places, depth), survival, zero)
    here = g.add("Where", g.add("Equal", places, depth), survival, zero)
    next_one = g.add("Max", g.add("ReduceSum", here, axis, keepdims=1), g.constant(np.array([_LEAST_SURVIVAL])))
    last = g.add("Sub", depth, g.constant(np.array(1, np.int64)))
    paid = g.add("ReduceSum", g.add("Where", g.add("Equal", places, last), price, zero), axis, keepdims=1)
    upto = g.constant((steps[:, None] <= steps[None, :]).astype(np.float64))
    worth = g.add("Div", g.add("Mul", chance, g.add("MatMul", ahead, upto)), next_one)
    gain = g.add("Sub", worth, g.add("Sub", price, paid))
    gain = g.add("Where", g.add("Greater", ahead, zero), gain, g.constant(np.array([-np.inf])))
    goes_on = g.add("GreaterOrEqual", g.add("ReduceMax", gain, axis, keepdims=0), zero)

    begins = g.add("Equal", g.add("Squeeze", depth, axis), g.constant(np.array(0, np.int64)))
    inside_now = g.add("And", g.add("Not", begins), goes_on)
    chosen = g.add("Or", g.add("And", begins, starts), inside_now)
    allowed = g.add("Not", g.add("Equal", floor, g.constant(np.array(_NEVER, np.int64))))
    drafts = g.add("And", chosen, allowed)
    g.add("Where", drafts, g.constant(np.array(size, np.int64)), g.constant(np.array(0, np.int64)), out="gamma")
    return len(inside.biases[-1])
