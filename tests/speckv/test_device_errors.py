# SPDX-License-Identifier: Apache-2.0
"""Memory that runs out and devices that are lost: one error that says what to do, from whatever runs models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from speckv.commands.app import EXPLAINED, run_explained
from speckv.decoding import Engine, RequestContext, generate
from speckv.envs.live import LiveDecodingEnv, LivePrompt
from speckv.errors import ConfigError, DeviceError, SpecKVError, device_errors_explained
from speckv.models import PairConfig, load_pair
from speckv.runtime.constant import ConstantGamma
from tests.fakes import TableModel, save_tiny, tiny_qwen
from tests.fakes_live import FailingModel, lost_device, out_of_memory
from tests.fakes_traces import make_cost_table


def failing(passes: int, fail: Callable[[Tensor], Tensor]) -> Engine:
    target = TableModel.random(4)
    return Engine(FailingModel(target.table, passes, fail), target.perturbed(5, 1.0))


def test_memory_that_really_runs_out_is_told() -> None:
    with pytest.raises(DeviceError, match=r"ran out of memory.*model\.compression"), device_errors_explained():
        torch.empty(2**58, dtype=torch.uint8)
    with pytest.raises(DeviceError, match="ran out of memory"), device_errors_explained():
        np.empty(2**58, np.uint8)


@pytest.mark.gpu
def test_memory_of_a_gpu_that_really_runs_out_is_told() -> None:
    with pytest.raises(DeviceError, match=r"ran out of memory \(CUDA out of memory"), device_errors_explained():
        torch.empty(2**46, dtype=torch.uint8, device="cuda")


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught, device_errors_explained():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not isinstance(caught.value, SpecKVError)
    with pytest.raises(ConfigError, match="out of memory"), device_errors_explained():
        raise ConfigError("a deliberate error that speaks of what is out of memory")


@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize(("fail", "message"), [(out_of_memory, "ran out of memory"), (lost_device, "device failed")])
def test_generation_explains_at_the_prefill_and_later(
    passes: int, fail: Callable[[Tensor], Tensor], message: str
) -> None:
    context = RequestContext(compression="fp16", cost_ratio=0.5)
    with pytest.raises(DeviceError, match=message):
        generate(failing(passes, fail), [1, 2], ConstantGamma(2), context=context, max_new_tokens=40)


@pytest.mark.parametrize("decides", ["per_step", "per_token"])
def test_the_live_environment_explains(decides: str) -> None:
    env = LiveDecodingEnv(
        engine=failing(1, out_of_memory),
        prompts=[LivePrompt(prompt_id="p", tokens=(1, 2))],
        cost=make_cost_table(),
        decides=decides,
    )
    env.reset(seed=0)
    with pytest.raises(DeviceError, match="ran out of memory"):
        env.step(np.int64(0))
    with pytest.raises(DeviceError, match="ran out of memory"):
        env.reset()


def test_loading_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "tiny", tiny_qwen(0))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.00 GiB.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(DeviceError, match=r"14\.00 GiB"):
        load_pair(PairConfig(target=str(folder), draft="self", device="cpu"))


def test_a_program_ends_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_explained(lambda: torch.empty(2**58, dtype=torch.uint8))  # type: ignore[arg-type]
    assert ended.value.code == EXPLAINED
    assert capsys.readouterr().err.startswith("speckv: The device ran out of memory")
