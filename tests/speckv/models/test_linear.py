# SPDX-License-Identifier: Apache-2.0
"""Products for few and for many rows: the same values as the stock ones, and only where they were timed to win."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from speckv.models import linear
from speckv.models.linear import (
    BLOCK_ROWS,
    PROBED_ROWS,
    PROBED_WIDE_ROWS,
    NarrowLinear,
    WideningLinear,
    stock_linear,
    use_fast_linear,
    widened_product,
)


@pytest.mark.parametrize("rows", [1, 2, 17, 18])
@pytest.mark.parametrize("bias", [False, True])
def test_the_narrow_product_is_the_same_product(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "widest_narrow_product", lambda: 17)
    layer = NarrowLinear(48, 80, bias=bias)
    x = torch.randn(1, rows, 48)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert layer(x).is_contiguous()


def test_the_widest_narrow_product_is_one_that_was_timed() -> None:
    assert linear.widest_narrow_product() in (0, *PROBED_ROWS)


@pytest.mark.parametrize("rows", [1, 3, 4, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_the_widened_product_is_the_same_up_to_rounding(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "fewest_widened_rows", lambda: 4)
    layer = WideningLinear(48, 2 * BLOCK_ROWS + 7, bias=bias).to(torch.bfloat16)
    x = torch.randn(2, rows, 48).to(torch.bfloat16)
    with torch.inference_mode():
        found = layer(x)
    exact = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


def test_widened_sums_are_those_of_float32() -> None:
    x, weight = torch.randn(40, 300).to(torch.bfloat16), torch.randn(BLOCK_ROWS + 3, 300).to(torch.bfloat16)
    expected = (x.float() @ weight.float().t()).to(torch.bfloat16)
    close = (widened_product(x, weight).float() - expected.float()).abs() <= expected.float().abs() / 128
    assert close.float().mean() > 0.999  # the rest: sums in another order, one rounding apart


def test_layers_switch_to_what_was_timed_to_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "widest_narrow_product", lambda: 17)
    monkeypatch.setattr(linear, "fewest_widened_rows", lambda: None)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16), nn.Linear(4, 4).double())
    assert use_fast_linear(model) == 1
    monkeypatch.setattr(linear, "fewest_widened_rows", lambda: 9)
    assert use_fast_linear(model) == 1
    switched = [NarrowLinear, WideningLinear, nn.Linear]
    assert [type(layer) for layer in model] == switched
    with stock_linear(model):
        assert {type(layer) for layer in model} == {nn.Linear}
    assert [type(layer) for layer in model] == switched


def test_the_fewest_widened_rows_are_some_that_were_timed() -> None:
    assert linear.fewest_widened_rows() in (None, *PROBED_WIDE_ROWS)
