# SPDX-License-Identifier: Apache-2.0
"""PyTorch threads: what is set, and the default under a CPU quota."""

from collections.abc import Iterator

import pytest
import torch

from speckv.models import device


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "cores", "expected"), [(None, 2, 2), (None, 8, 4), (3, 2, 3)])
def test_the_default_is_at_most_the_usable_cores(
    asked: int | None, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    device.use_threads(asked)
    assert torch.get_num_threads() == expected
