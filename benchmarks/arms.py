# SPDX-License-Identifier: Apache-2.0
"""Several ways to decode the same prompts, timed in turn, and their ratios; the best constant. Needs NumPy alone."""

import argparse
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speckv.evaluation.bootstrap import ratio_interval
from speckv.files import write_atomically

logger = logging.getLogger(__name__)
NUM_RESAMPLES = 10_000

Decode = Callable[[Sequence[int], str], list[int]]
"""Token ids and name of a prompt -> tokens of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What arms did on the same prompts.

    Attributes:
        seconds: Arm -> seconds of each whole call, in the prompts' order.
        texts: Arm -> tokens of each call.
    """

    seconds: dict[str, list[float]]
    texts: dict[str, list[list[int]]]

    def tokens_per_s(self, name: str) -> float:
        """Tokens of all of an arm's calls over their seconds."""
        return sum(map(len, self.texts[name])) / sum(self.seconds[name])

    def other_texts(self, name: str, reference: str) -> int:
        """Prompts on which an arm's text differs from another arm's."""
        return sum(a != b for a, b in zip(self.texts[name], self.texts[reference], strict=True))


def run_arms(
    arms: Mapping[str, Decode],
    prompts: Mapping[str, Sequence[int]],
    *,
    synchronise: Callable[[], None] = lambda: None,
    on_prompt: Callable[[str, Runs], None] = lambda *_: None,
    go_on: Callable[[], bool] = lambda: True,
) -> Runs:
    """Decodes every prompt by all arms, in an order that rotates, after one warm-up call of each.

    Args:
        arms: Name -> how to decode.
        prompts: Name -> token ids.
        synchronise: Waits for the device; called at both ends of every call.
        on_prompt: Called after each prompt.
        go_on: Called after each prompt; False ends the run.
    """
    names = list(arms)
    for decode in arms.values():
        decode(next(iter(prompts.values())), "warm-up")
    runs = Runs(seconds=defaultdict(list), texts=defaultdict(list))
    for number, (prompt, ids) in enumerate(prompts.items()):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            synchronise()
            started = time.perf_counter()
            runs.texts[name].append(arms[name](ids, prompt))
            synchronise()
            runs.seconds[name].append(time.perf_counter() - started)
        on_prompt(prompt, runs)
        if not go_on():
            break
    return runs


def telling(report: Callable[[Runs], str], out: Path | None) -> Callable[[str, Runs], None]:
    """A callback for each prompt: logs the seconds of the arms and writes the report so far.

    Args:
        report: The report so far, as text.
        out: Its file.
    """

    def tell(prompt: str, runs: Runs) -> None:
        logger.info("%s: %s", prompt, ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in runs.seconds.items()))
        if out:
            write_atomically(out, report(runs))

    return tell


@dataclass(frozen=True, slots=True, kw_only=True)
class BestConstant:
    """The constant that a library's own loop is fastest with.

    Attributes:
        gamma: In tokens.
        seconds: Constant -> seconds of all train prompts together; empty where the best one was given.
        prompts: Names of the train prompts.
    """

    gamma: int
    seconds: Mapping[int, float] = field(default_factory=dict)
    prompts: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Its entry in a result."""
        return {
            "gamma": self.gamma,
            "seconds_on_train_prompts": {str(gamma): seconds for gamma, seconds in self.seconds.items()},
            "train_prompts": list(self.prompts),
        }


def tune(constants: Mapping[int, Decode], prompts: Mapping[str, Sequence[int]], **options: Any) -> BestConstant:
    """Decodes train prompts with each constant and keeps the one that took the fewest seconds.

    Args:
        constants: Gamma -> how to decode.
        prompts: As for `run_arms`.
        **options: Likewise.
    """
    runs = run_arms({str(gamma): decode for gamma, decode in constants.items()}, prompts, **options)
    seconds = {gamma: sum(runs.seconds[str(gamma)]) for gamma in constants}
    return BestConstant(gamma=min(seconds, key=lambda g: seconds[g]), seconds=seconds, prompts=[*prompts])


def add_constant_arguments(parser: argparse.ArgumentParser, gammas: Sequence[int]) -> None:
    """Adds arguments for the best constant, or for the prompts to tune it on.

    Args:
        parser: Takes the arguments.
        gammas: Constants to choose from by default.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--train", nargs="+", help="train prompts, to tune the constant on in this loop")
    source.add_argument("--gamma", type=int, help="the best constant, if it is known")
    parser.add_argument("--train-per-task", type=int, default=1)
    parser.add_argument("--gammas", type=int, nargs="+", default=list(gammas), help="constants to choose from")


def as_ratio(reference: np.ndarray, mine: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """A ratio of total seconds with its paired 95 % interval; none where one prompt a task leaves nothing to draw."""
    found = ratio_interval(reference, mine, counts)
    if (counts == counts[0]).all():
        return {"estimate": found.estimate, "low": None, "high": None}
    return {"estimate": found.estimate, "low": found.low, "high": found.high}
