# SPDX-License-Identifier: Apache-2.0
"""Dense stand-ins of compressed layers compute what the compressed ones do."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from speckv.models.compression import ROWS_AT_ONCE, RowwiseInt8Linear, expand_compressed

INPUTS, OUTPUTS = 64, 48


def int8_layer(bias: bool) -> nn.Module:
    dense = nn.Linear(INPUTS, OUTPUTS, bias=bias)
    layer = bnb.nn.Linear8bitLt(INPUTS, OUTPUTS, bias=bias, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(dense.state_dict())
    moved: nn.Module = layer.to("cpu")  # type: ignore[no-untyped-call]  # moving the layer is what quantises it
    return moved.eval()


def rows_with_outliers(count: int) -> torch.Tensor:
    x = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        x[i, 5 * i % INPUTS] = 9.0 + i  # another column in each row
    return x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_int8_row_by_row(bias: bool) -> None:
    model = nn.Sequential(int8_layer(bias))
    x = rows_with_outliers(6)
    with torch.inference_mode():
        one_at_a_time = torch.cat([model(row[None]) for row in x])
        together = model(x)
        assert expand_compressed(model, torch.float32) == 1
        expanded = model(x)
    assert type(model[0]) is RowwiseInt8Linear
    torch.testing.assert_close(expanded, one_at_a_time, atol=1e-4, rtol=1e-4)
    # A pass of several rows is another function, because outliers choose columns for all of them.
    assert (together - one_at_a_time).abs().max() > 1e-3


def test_int8_before_its_first_pass() -> None:
    layer = int8_layer(bias=False)
    again = nn.Sequential(int8_layer(bias=False))
    again[0].load_state_dict(layer.state_dict())
    assert expand_compressed(again, torch.float32) == 1


def test_a_row_of_zeros_and_one_of_outliers_alone() -> None:
    model = nn.Sequential(int8_layer(bias=False))
    expand_compressed(model, torch.float32)
    layer = model[0]
    assert isinstance(layer, RowwiseInt8Linear)
    with torch.inference_mode():
        found = model(torch.stack([torch.zeros(INPUTS), torch.full((INPUTS,), 8.0)]))
    assert torch.equal(found[0], torch.zeros(OUTPUTS))
    torch.testing.assert_close(found[1], 8.0 * (layer.codes.float() * layer.scale[:, None]).sum(1))


def test_the_integer_product_is_the_product() -> None:
    model = nn.Sequential(int8_layer(bias=True))
    expand_compressed(model, torch.float32)
    layer = model[0]
    assert isinstance(layer, RowwiseInt8Linear)
    x = rows_with_outliers(ROWS_AT_ONCE + 3).reshape(1, -1, INPUTS)
    with torch.inference_mode():
        layer._integers = False
        floats = model(x)
        if torch.backends.cpu.get_cpu_capability() == "AVX512":
            layer._integers = True
            torch.testing.assert_close(model(x), floats)
    assert floats.shape == (1, ROWS_AT_ONCE + 3, OUTPUTS)


def test_nf4() -> None:
    dense = nn.Linear(INPUTS, OUTPUTS)
    layer: nn.Module = bnb.nn.Linear4bit(  # type: ignore[no-untyped-call]
        INPUTS, OUTPUTS, quant_type="nf4", compute_dtype=torch.float32
    )
    layer.load_state_dict(dense.state_dict())
    model = nn.Sequential(layer.to("cpu"), nn.ReLU())
    x = rows_with_outliers(5)
    with torch.inference_mode():
        before = model(x)
        assert expand_compressed(model, torch.float32) == 1
        torch.testing.assert_close(model(x), before)
    assert expand_compressed(model, torch.float32) == 0
