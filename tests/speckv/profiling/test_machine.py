# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on: the accelerator that was used, and the cores that may be used."""

import pytest
import torch

from speckv.profiling.machine import describe_machine


def test_the_accelerator_that_was_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device.index if device else 0}")
    assert describe_machine(torch.device("cuda:1"))["accelerator"] == "GPU 1"
    assert describe_machine(torch.device("cpu"))["accelerator"] == describe_machine()["accelerator"] == "GPU 0"


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})  # noqa: ARG005
    assert describe_machine()["cores"] == "1"
