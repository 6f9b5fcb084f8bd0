# SPDX-License-Identifier: Apache-2.0
"""The number of PyTorch threads that models run on."""

import torch

from speckv.cores import usable_cores


def use_threads(threads: int | None) -> None:
    """Sets PyTorch's threads; None limits PyTorch's default to `usable_cores`, because it ignores CPU quotas."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
