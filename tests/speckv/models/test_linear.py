# SPDX-License-Identifier: Apache-2.0
"""Fast products: the same values as the stock ones up to rounding, and layers that stay usable as `nn.Linear`."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speckv.models import linear
from speckv.models.linear import (
    BLOCK_ROWS,
    PADDED_ROWS,
    PROBED_ROWS,
    FastLinear,
    PackedLinear,
    Product,
    Products,
    fastest_products,
    one_by_one_product,
    padded_product,
    stock_layers,
    transposed_product,
    use_fast_linear,
    widened_product,
)

ERRORS = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Relative errors that sums in another order may have."""
ROWS = [1, 2, 3, 5, 17, 40]
packable = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="this build of torch has no oneDNN"
)


def choose(monkeypatch: pytest.MonkeyPatch, products: Products) -> None:
    monkeypatch.setattr(linear, "fastest_products", lambda _: products)


def unpacked(*by_rows: tuple[int, Product | None]) -> Products:
    return Products(packs=False, padded=frozenset(), by_rows=by_rows, seconds={})


PACKED = Products(packs=True, padded=frozenset({1, 2}), by_rows=(), seconds={})


def layer_of(dtype: torch.dtype, *, bias: bool = True, shape: tuple[int, int] = (300, 2 * BLOCK_ROWS + 7)) -> nn.Linear:
    return nn.Linear(*shape, bias=bias).to(dtype).requires_grad_(False)


def assert_same_up_to_rounding(found: Tensor, x: Tensor, layer: nn.Linear, dtype: torch.dtype) -> None:
    exact = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    assert found.is_contiguous()
    error = (found.double() - exact).norm() / exact.norm()
    assert error < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("product", [transposed_product, one_by_one_product, widened_product])
def test_every_product_is_the_stock_one_up_to_rounding(
    dtype: torch.dtype, rows: int, product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, unpacked((1, product)))
    layer = layer_of(dtype)
    x = torch.randn(2, rows, 300).to(dtype)
    reference = copy.deepcopy(layer)
    assert use_fast_linear(layer) == 1
    assert type(layer) is FastLinear
    assert_same_up_to_rounding(layer(x), x, reference, dtype)


def test_a_product_serves_from_its_rows_to_the_next_ones() -> None:
    products = unpacked((1, None), (3, transposed_product), (9, None), (17, widened_product))
    found = [products.of(rows) for rows in (1, 2, 3, 8, 9, 16, 17, 500)]
    assert found == [None, None, transposed_product, transposed_product, None, None, widened_product, widened_product]


def test_widened_sums_are_those_of_float32() -> None:
    x, weight = torch.randn(40, 300).to(torch.bfloat16), torch.randn(BLOCK_ROWS + 3, 300).to(torch.bfloat16)
    expected = (x.float() @ weight.float().t()).to(torch.bfloat16)
    close = (widened_product(x, weight).float() - expected.float()).abs() <= expected.float().abs() / 128
    assert close.float().mean() > 0.999  # the rest: sums in another order, one rounding apart


@packable
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("rows", [0, *ROWS])
@pytest.mark.parametrize("bias", [False, True])
def test_the_packed_product_is_the_stock_one_up_to_rounding(
    dtype: torch.dtype, rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, PACKED)
    layer = layer_of(dtype, bias=bias)
    x = torch.randn(1, rows, 300).to(dtype)
    reference = copy.deepcopy(layer)
    assert use_fast_linear(layer) == 1
    assert type(layer) is PackedLinear
    if rows:
        assert_same_up_to_rounding(layer(x), x, reference, dtype)
    else:
        assert layer(x).shape == (1, 0, 2 * BLOCK_ROWS + 7)


@packable
def test_padding_repeats_a_row_and_drops_it() -> None:
    x, weight = torch.randn(2, 256), torch.randn(512, 256)
    found = padded_product(x, linear.packed(weight))
    assert found.shape == (2, 512)
    torch.testing.assert_close(found, x @ weight.t(), atol=1e-4, rtol=1e-4)
    assert PADDED_ROWS > 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(512, 256)
        self.inner = nn.Linear(256, 256)
        self.head = nn.Linear(256, 512, bias=False)
        self.head.weight = self.embedding.weight
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.inner(self.embedding(ids)))
        return scores


@packable
def test_a_packed_model_can_be_stored_copied_loaded_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, PACKED)
    model, ids = Tied(), torch.arange(7)
    before, stored = model(ids), {key: value.clone() for key, value in model.state_dict().items()}
    assert use_fast_linear(model) == 2
    assert isinstance(model.inner, PackedLinear)
    assert not model.inner.is_shared
    # The embedding still reads the head's weight.
    assert isinstance(model.head, PackedLinear)
    assert model.head.is_shared
    assert not model.embedding.weight.is_mkldnn
    torch.testing.assert_close(model(ids), before, atol=1e-4, rtol=1e-4)
    assert (model.inner.weight.shape, model.inner.weight.dtype) == ((256, 256), torch.float32)
    assert {key: torch.equal(value, stored[key]) for key, value in model.state_dict().items()} == dict.fromkeys(
        stored, True
    )
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.inner) is nn.Linear
        assert torch.equal(other(ids), before)
    assert type(model.inner) is PackedLinear
    moved = model.double()
    assert type(moved.inner) is nn.Linear
    assert moved.inner.weight.dtype == torch.float64
    assert use_fast_linear(model) == 0  # nothing is faster for this dtype
    model.float()
    assert use_fast_linear(model) == 2
    model.load_state_dict({key: value + 1 for key, value in stored.items()})
    assert torch.equal(model.inner.weight, stored["inner.weight"] + 1)


@packable
def test_stock_layers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, PACKED)
    model, ids = Tied(), torch.arange(7)
    before = model(ids)
    use_fast_linear(model)
    stock_layers(model)
    assert {type(model.inner), type(model.head)} == {nn.Linear}
    assert torch.equal(model(ids), before)


def test_only_large_frozen_layers_of_known_dtypes_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, unpacked((1, transposed_product)))
    small, trained, double = nn.Linear(8, 8), nn.Linear(300, 300), nn.Linear(300, 300).double()
    for layer in (small, double):
        layer.requires_grad_(False)
    model = nn.Sequential(small, trained, double, layer_of(torch.bfloat16))
    assert use_fast_linear(model) == 1
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, nn.Linear, FastLinear]
    choose(monkeypatch, unpacked((1, None)))
    assert use_fast_linear(layer_of(torch.float32)) == 0


@pytest.mark.parametrize("dtype", ERRORS)
def test_products_are_chosen_by_their_times(dtype: torch.dtype) -> None:
    products = fastest_products(dtype)
    assert sorted(products.seconds) == list(PROBED_ROWS)
    assert min(products.seconds.values()) > 0
    assert products.packs or [least for least, _ in products.by_rows] == list(PROBED_ROWS)
    assert products is fastest_products(dtype)


def test_packing_needs_to_win_and_never_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Products(packs=False, padded=frozenset(), by_rows=(), seconds={1: 1.0, 5: 1.0, 128: 1.0})
    inputs = {rows: torch.empty(rows, 4) for rows in plain.seconds}
    monkeypatch.setattr(linear, "packed", lambda weight: weight)

    def chosen(direct: dict[int, float], padded: float = 9.0) -> Products:
        def seconds(product: Product, _: list[Tensor], x: Tensor) -> float:
            return padded if product is padded_product else direct[len(x)]

        monkeypatch.setattr(linear, "median_seconds", seconds)
        return linear._packed_if_faster(plain, [torch.empty(4, 4)], inputs)

    assert chosen({1: 1.0, 5: 0.5, 128: 1.0}).packs
    assert not chosen({1: 1.0, 5: 0.5, 128: 1.5}).packs
    assert not chosen({1: 1.0, 5: 0.95, 128: 1.0}).packs
    assert chosen({1: 1.0, 5: 0.5, 128: 1.0}, padded=0.6).padded == {1}
