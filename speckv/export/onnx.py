# SPDX-License-Identifier: Apache-2.0
"""A network as an ONNX graph from raw observations to one decision a row, for hosts in C++ or Java."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from speckv.errors import CheckpointError, ConfigError
from speckv.files import write_atomically
from speckv.runtime import Policy
from speckv.runtime.learned import PolicyController

MODEL = "policy.onnx"
OPSET = 17
_IR_VERSION = 9
"""Readable by runtimes from 2023 on."""


def write_onnx(policy: Policy, folder: Path) -> list[Path]:
    """Writes `policy.onnx`: `observation` of shape [rows, features] -> `gamma` (int64) and `scores`, both by row.

    For a policy that decides token by token, gamma is 0 where it verifies and its greatest gamma where it drafts on.

    Raises:
        CheckpointError: if the policy is no network, or one with memory.
        ConfigError: if the package `onnx` is not installed.
    """
    controller = policy.controller
    if not isinstance(controller, PolicyController):
        raise CheckpointError(
            f"Expected a policy that is one network (ppo, a2c, dqn, qr_dqn), got {policy.name!r}. Export it with "
            "--to policy, which runs with NumPy alone, or export a network such as cpu-2core-ppo."
        )
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise ConfigError("Expected the package onnx, found none: pip install onnx.") from error
    weights, biases = controller.policy.folded()
    gammas = np.array(controller.policy.gammas, np.int64)
    nodes: list[Any] = []
    constants = [numpy_helper.from_array(gammas, "gammas")]
    value = "observation"
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        last = index == len(weights) - 1
        constants += [
            numpy_helper.from_array(weight, f"weight_{index}"),
            numpy_helper.from_array(bias, f"bias_{index}"),
        ]
        out = "scores" if last else f"sum_{index}"
        nodes.append(helper.make_node("Gemm", [value, f"weight_{index}", f"bias_{index}"], [out], transB=1))
        if not last:
            nodes.append(helper.make_node("Tanh", [out], [f"hidden_{index}"]))
            value = f"hidden_{index}"
    nodes.append(helper.make_node("ArgMax", ["scores"], ["place"], axis=1, keepdims=0))
    nodes.append(helper.make_node("Gather", ["gammas", "place"], ["gamma"]))
    features = controller.policy.schema.size
    graph = helper.make_graph(
        nodes,
        policy.name,
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["rows", features])],
        [
            helper.make_tensor_value_info("gamma", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", len(gammas)]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
    helper.set_model_props(
        model, {"speckv": json.dumps({"name": policy.name, "features": controller.policy.schema.names})}
    )
    onnx.checker.check_model(model)
    path = folder / MODEL
    write_atomically(path, model.SerializeToString())
    return [path]
