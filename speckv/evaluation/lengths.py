# SPDX-License-Identifier: Apache-2.0
"""Test prompts by length: a quarter of them in each bucket, because a pass takes longer behind a longer context."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speckv.evaluation.bootstrap import Float64
from speckv.evaluation.metrics import ALL, Grid, Group
from speckv.replay import CompiledTraces

QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Prompts of similar length. Lengths are in tokens, the chat template's included.

    Attributes:
        shortest: Prompt.
        longest: Prompt.
        longest_context: Prompt and what was generated, of the sequence that got longest.
        prompts: Rows of the grid.
    """

    shortest: int
    longest: int
    longest_context: int
    prompts: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The bounds, as a table shows them."""
        return f"{self.shortest}-{self.longest}" if self.longest > self.shortest else str(self.shortest)


def length_buckets(compiled: CompiledTraces, grid: Grid) -> tuple[Bucket, ...]:
    """Cuts the prompts at the quartiles of their lengths, shortest first; prompts of one length stay together.

    The length of the prompt, and not of prompt and text, decides: it is known before decoding, and the same at every
    compression, whose texts may differ.
    """
    prompt_len = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(prompt_len, grid.rows, compiled.prompt_len)
    context = np.zeros(len(grid.prompt_ids), np.int64)
    np.maximum.at(context, grid.rows, compiled.prompt_len + compiled.length)
    cuts = np.quantile(prompt_len, QUARTERS, method="inverted_cdf")
    quarter = np.searchsorted(cuts, prompt_len, side="left")
    found = []
    for number in range(len(cuts) + 1):
        prompts = np.flatnonzero(quarter == number)
        if len(prompts):
            inside = prompt_len[prompts]
            found.append(
                Bucket(
                    shortest=int(inside.min()),
                    longest=int(inside.max()),
                    longest_context=int(context[prompts].max()),
                    prompts=prompts,
                )
            )
    return tuple(found)


def groups_by_length(bucket: Bucket, whole: tuple[Group, ...], tokens: Float64) -> tuple[Group, ...]:
    """Cuts a bucket out of groups of all tasks, as far as anything was recorded there.

    Args:
        bucket: Prompts of similar length.
        whole: One group a compression and one of all.
        tokens: Shape [prompts, compressions] of the whole grid; zero where nothing was recorded.
    """
    cut = []
    for group in whole:
        prompts = np.intersect1d(group.prompts, bucket.prompts)
        columns = group.columns[(tokens[np.ix_(prompts, group.columns)] > 0).any(axis=0)]
        if len(columns):
            cut.append(Group(compression=group.compression, task=ALL, prompts=prompts, columns=columns))
    return tuple(cut)
