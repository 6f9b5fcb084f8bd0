# SPDX-License-Identifier: Apache-2.0
"""Faster matrix products on CPUs for the few rows of decode steps.

`F.linear` is made for many rows. On two AVX-512 cores, a weight of 8960 x 1536 took it 3.5 ms for one row and 7.7 ms
for five in float32, 1.3 and 1.4 ms in bfloat16; reading the weight takes 1.8 and 0.9 ms. Alternatives:

- packed: oneDNN's product on a weight that is stored in blocks: 1.8 and 0.9 ms for five rows, whose time one row also
  takes if it is repeated;
- transposed: `(weight @ x.T).T`, float32 without oneDNN's kernels;
- widened: bfloat16 on CPUs without instructions for it, converted to float32 in blocks that fit the cache;
- one by one: `torch.mv`, a row at a time.

Each is timed once per process and dtype, at several row counts, and used where it is faster.
"""

import copy
import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBED_ROWS = (1, 2, 3, 5, 9, 17, 33, 64, 128)
LEAST_WEIGHTS = 1 << 16
"""Layers of fewer weights stay as they are."""
BLOCK_ROWS = 512
"""Rows of a weight widened at a time: 3 MB for 1536 features."""
PADDED_ROWS = 5
"""The packed product of fewer rows may be slower than of these."""
FASTER = 0.9
"""An alternative is used below this share of the stock product's time."""
PADDING_FASTER = 0.97
_PACKED_FOR = 16
"""Rows that the blocks of a packed weight are chosen for."""
_PROBE_SHAPE, _PROBED_WEIGHTS = (6144, 1536), 6
"""Together larger than caches, even in bfloat16."""
_REPEATS, _TURNS = 7, 6

Product = Callable[[Tensor, Tensor], Tensor]
"""x of [rows, in_features] and a weight of [out_features, in_features] -> [rows, out_features]."""

_local = threading.local()


def transposed_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)`, with the weight on the left."""
    return torch.mm(weight, x.t()).t().contiguous()


def one_by_one_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)`, a row at a time."""
    return torch.stack([torch.mv(weight, row) for row in x])


def widened_product(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` with float32 sums, in x's dtype."""
    wide = x.float().t()
    out = torch.empty(len(weight), x.shape[0])
    room = _room(weight.shape[1])
    for begin in range(0, len(weight), BLOCK_ROWS):
        part = weight[begin : begin + BLOCK_ROWS]
        torch.mm(room[: len(part)].copy_(part), wide, out=out[begin : begin + len(part)])
    return out.t().to(x.dtype).contiguous()


def _room(features: int) -> Tensor:
    rooms: dict[int, Tensor] = _local.__dict__.setdefault("rooms", {})
    if features not in rooms:
        with torch.inference_mode(mode=False):  # a tensor of inference mode could not be written to outside of it
            rooms[features] = torch.empty(BLOCK_ROWS, features)
    return rooms[features]


def packed(weight: Tensor) -> Tensor:
    """A weight in oneDNN's blocks; `to_dense` undoes it exactly."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR)  # type: ignore[no-any-return]


def packed_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)` of a packed weight; x may have more dimensions."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def padded_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `packed_product`, of `PADDED_ROWS` at least: the last row is repeated; x has two dimensions."""
    rows = x.shape[0]
    padding = x[-1:].expand(PADDED_ROWS - rows, -1)
    return packed_product(torch.cat([x, padding]), weight, bias)[:rows]


@dataclass(frozen=True, slots=True)
class Products:
    """The fastest products of a dtype.

    Attributes:
        packs: Whether the packed product is used, for all row counts.
        padded: Row counts at which it is faster with padding.
        by_rows: Otherwise, the product from each number of rows on; the stock one where None.
        seconds: Time of the product used, by rows.
    """

    packs: bool
    padded: frozenset[int]
    by_rows: tuple[tuple[int, Product | None], ...]
    seconds: dict[int, float]

    @property
    def stock(self) -> bool:
        """Whether nothing is faster than `F.linear`."""
        return not self.packs and all(product is None for _, product in self.by_rows)

    def of(self, rows: int) -> Product | None:
        """The unpacked product for a number of rows."""
        return next((product for least, product in reversed(self.by_rows) if rows >= least), None)


@functools.cache
def fastest_products(dtype: torch.dtype) -> Products:
    """Times the products of a dtype on this machine."""
    weights = [torch.randn(_PROBE_SHAPE).to(dtype) for _ in range(_PROBED_WEIGHTS)]
    inputs = {rows: torch.randn(rows, _PROBE_SHAPE[1]).to(dtype) for rows in PROBED_ROWS}
    stock = {rows: median_seconds(F.linear, weights, x) for rows, x in inputs.items()}
    other: list[Product] = [transposed_product]
    other += [widened_product, one_by_one_product] if dtype == torch.bfloat16 else []
    by_rows, seconds = list[tuple[int, Product | None]](), dict[int, float]()
    for rows, x in inputs.items():
        times: dict[Product | None, float] = {None: stock[rows]}
        for product in other:
            if product is not one_by_one_product or rows <= 2:
                times[product] = median_seconds(product, weights, x, limit=stock[rows]) / FASTER
        fastest = min(times, key=lambda product: times[product])
        by_rows.append((rows, fastest))
        seconds[rows] = times[fastest]
    plain = Products(packs=False, padded=frozenset(), by_rows=tuple(by_rows), seconds=seconds)
    return _packed_if_faster(plain, weights, inputs)


def _packed_if_faster(plain: Products, weights: list[Tensor], inputs: dict[int, Tensor]) -> Products:
    """Packs where that is never slower, because a packed weight has no other product."""
    try:
        blocks = [packed(weight) for weight in weights]
        direct = {rows: median_seconds(packed_product, blocks, x) for rows, x in inputs.items()}
    except (AttributeError, NotImplementedError, RuntimeError):  # this build or CPU has no such product
        return plain
    few = {rows: x for rows, x in inputs.items() if rows < PADDED_ROWS}
    padded = {}
    for rows, x in few.items():  # in turns, as the two differ by less than a busy moment of the machine
        pairs = [[median_seconds(p, blocks, x) for p in (padded_product, packed_product)] for _ in range(_TURNS)]
        padded[rows], direct[rows] = (sum(times) / _TURNS for times in zip(*pairs, strict=True))
    best = {rows: min(seconds, padded.get(rows, seconds)) for rows, seconds in direct.items()}
    shares = [best[rows] / plain.seconds[rows] for rows in inputs]
    if max(shares) > 1 / FASTER or min(shares) >= FASTER:
        return plain
    gains = frozenset(rows for rows in few if padded[rows] < PADDING_FASTER * direct[rows])
    return Products(packs=True, padded=gains, by_rows=(), seconds=best)


def seconds_by_rows(dtype: torch.dtype, rows: int) -> float:
    """Time of the product used for one of `PROBED_ROWS`, of a weight of 6144 x 1536."""
    return fastest_products(dtype).seconds[rows]


def median_seconds(product: Product, weights: list[Tensor], x: Tensor, *, limit: float = float("inf")) -> float:
    """Median time of `product(x, weight)`; of one call if that took twice `limit`."""
    seconds = list[float]()
    with torch.inference_mode():
        product(x, weights[0])
        for i in range(_REPEATS):
            weight = weights[(i + 1) % len(weights)]  # another matrix each time, so that caches do not flatter
            start = time.perf_counter()
            product(x, weight)
            seconds.append(time.perf_counter() - start)
            if seconds[0] > 2 * limit:
                break
    return sorted(seconds)[len(seconds) // 2]


class FastLinear(nn.Linear):
    """`nn.Linear` with the fastest product for each number of rows; equal up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer."""
        rows = input.numel() // self.in_features
        product = fastest_products(self.weight.dtype).of(rows)
        if product is None or not rows:
            return F.linear(input, self.weight, self.bias)
        output = product(input.reshape(-1, self.in_features), self.weight)
        if self.bias is not None:
            output = output + self.bias
        return output.reshape(*input.shape[:-1], self.out_features)


class PackedLinear(nn.Linear):
    """`nn.Linear` on a packed weight; equal up to rounding.

    Stored, copied and pickled it is an `nn.Linear`; moved or loaded, it becomes one. `weight` is the packed tensor
    itself, or the usual one if another module shares it.
    """

    blocks: Tensor

    @staticmethod
    def pack(layer: nn.Linear, *, shared: bool) -> None:
        """Packs a layer in place; `shared`: whether its weight has another user, who needs it as it is."""
        layer.__dict__["blocks"] = blocks = packed(layer.weight)
        if not shared:
            layer.weight = nn.Parameter(blocks, requires_grad=False)
        layer.__class__ = PackedLinear

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer."""
        rows = input.numel() // self.in_features
        if rows not in fastest_products(input.dtype).padded:
            return packed_product(input, self.blocks, self.bias)
        output = padded_product(input.reshape(-1, self.in_features), self.blocks, self.bias)
        return output.reshape(*input.shape[:-1], self.out_features)

    @property
    def is_shared(self) -> bool:
        """Whether the weight has another user."""
        return not self.weight.is_mkldnn

    def unpack(self) -> None:
        """Makes it an `nn.Linear`."""
        if not self.is_shared:
            self.weight = nn.Parameter(self.blocks.to_dense(), requires_grad=False)
        del self.__dict__["blocks"]
        self.__class__ = nn.Linear  # type: ignore[assignment]

    def _dense(self) -> nn.Linear:
        dense: nn.Linear = object.__new__(nn.Linear)
        dense.__dict__.update(self.__dict__)
        dense._parameters = dict(self._parameters)
        dense.__class__ = PackedLinear
        assert isinstance(dense, PackedLinear)
        dense.unpack()
        return dense

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """Copies as an `nn.Linear`."""
        return copy.deepcopy(self._dense(), memo)

    def __reduce__(self) -> tuple[Callable[[nn.Linear], nn.Linear], tuple[nn.Linear]]:
        """Pickles as an `nn.Linear`."""
        return _same, (self._dense(),)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.unpack()
        return self._apply(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.is_shared:
            destination[f"{prefix}weight"] = self.blocks.to_dense()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        self._load_from_state_dict(*args, **kwargs)


def _same(layer: nn.Linear) -> nn.Linear:
    return layer


def use_fast_linear(model: nn.Module) -> int:
    """Gives the `nn.Linear` layers of a model on a CPU the fastest products of their dtype; returns their number."""
    users = dict[int, int]()
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    switched = 0
    for layer in list(model.modules()):
        if type(layer) is not nn.Linear or not _can_switch(layer.weight):
            continue
        products = fastest_products(layer.weight.dtype)
        if products.packs:
            PackedLinear.pack(layer, shared=users[id(layer.weight)] > 1)
        elif not products.stock:
            layer.__class__ = FastLinear
        else:
            continue
        switched += 1
    return switched


def _can_switch(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    return on_cpu and weight.numel() >= LEAST_WEIGHTS and not weight.requires_grad


def stock_layers(model: nn.Module) -> None:
    """Switches a model's layers back to `nn.Linear`, for benchmarks of other software."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.unpack()
        elif isinstance(module, FastLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
