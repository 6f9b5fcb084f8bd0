# SPDX-License-Identifier: Apache-2.0
"""What was learned beside plain decoding and constants, live: the same prompts, all arms in turn, one process."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from agents.runs.console import InterruptedTraining, StopRequest
from agents.runs.live.decoded import COMPARE, Decoded, DecodedLog, summarise
from agents.runs.live.requests import decode_request, warm_up
from agents.runs.live.task import LiveTask
from speckv.evaluation.text import render_table
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm of the comparison, over all its prompts.

    Attributes:
        tokens_per_s: Emitted tokens over decode seconds; prefill left out, decisions included.
        tokens_per_step: Emitted tokens a target pass.
        mean_drafted: Drafted tokens a step.
        other_texts: Prompts whose text is not plain decoding's.
    """

    tokens_per_s: float
    tokens_per_step: float
    mean_drafted: float
    other_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveComparison:
    """All arms.

    Attributes:
        arms: Name -> figures, plain decoding first, what was learned last.
        learned: Name of what was learned.
        prompt_ids: What was decoded.
        max_new_tokens: Of each prompt.
    """

    arms: dict[str, Arm]
    learned: str
    prompt_ids: tuple[str, ...]
    max_new_tokens: int

    @property
    def best_fixed(self) -> str:
        """The fixed gamma with the most tokens a second here; plain decoding is gamma 0."""
        fixed = {name: arm.tokens_per_s for name, arm in self.arms.items() if name != self.learned}
        return max(fixed, key=lambda name: fixed[name])

    def ratios(self) -> dict[str, float]:
        """Of what was learned to plain decoding and to the best fixed gamma."""
        rate = self.arms[self.learned].tokens_per_s
        return {
            "x_plain": rate / self.arms[PLAIN].tokens_per_s,
            "x_best_fixed": rate / self.arms[self.best_fixed].tokens_per_s,
        }

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        figures = {
            name: {key: getattr(arm, key) for key in ("tokens_per_s", "tokens_per_step", "mean_drafted", "other_texts")}
            for name, arm in self.arms.items()
        }
        return {
            "arms": figures,
            "best_fixed": self.best_fixed,
            "learned": self.learned,
            "max_new_tokens": self.max_new_tokens,
            "prompts": list(self.prompt_ids),
            **self.ratios(),
        }

    def render(self) -> str:
        """A table, and what it does and does not say."""
        plain, best = self.arms[PLAIN].tokens_per_s, self.arms[self.best_fixed].tokens_per_s
        rows = [
            (
                f"{name} *" if name == self.best_fixed else name,
                f"{arm.tokens_per_s:.2f}",
                f"{arm.tokens_per_s / plain:.3f}",
                f"{arm.tokens_per_s / best:.3f}",
                f"{arm.tokens_per_step:.2f}",
                f"{arm.mean_drafted:.2f}",
                str(arm.other_texts),
            )
            for name, arm in self.arms.items()
        ]
        header = ("arm", "tokens/s", "x plain", "x best fixed", "tokens a step", "drafted a step", "other texts")
        count = len(self.prompt_ids)
        return (
            f"Wall clock on {count} held-out prompt{'s' if count > 1 else ''}, up to {self.max_new_tokens} tokens "
            "each; all arms in turn, decode time, prefill left out\n"
            f"{render_table(header, rows)}\n"
            f"* the best of {len(self.arms) - 1} fixed gammas, 0 among them, in hindsight and on these very prompts, "
            "which favours it. Few prompts and one repetition: no interval, a difference of some per cent is noise."
        )


def compare_live(
    task: LiveTask, controller: Controller, fixed_gammas: Sequence[int], log: DecodedLog, request: StopRequest
) -> LiveComparison:
    """Decodes every held-out prompt with every arm, in an order that rotates.

    Args:
        task: Models and held-out prompts, at least one.
        controller: What was learned; a copy decodes, so that the stored one stays what learning made it. A copy of a
            bandit goes on learning from its own requests, as it would in use.
        fixed_gammas: Constants beside it.
        log: Takes a line a request.
        request: Set by a signal.

    Raises:
        InterruptedTraining: after the request that a signal came in.
        SpecKVError: as `generate`.
    """
    arms: list[Controller] = [ConstantGamma(0, name=PLAIN)]
    arms += [ConstantGamma(gamma) for gamma in sorted(set(fixed_gammas))]
    arms.append(copy.deepcopy(controller))
    warm_up(task)
    requests: dict[str, list[Decoded]] = {arm.name: [] for arm in arms}
    others = dict.fromkeys(requests, 0)
    for number, prompt in enumerate(task.heldout):
        texts: dict[str, tuple[int, ...]] = {}
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            decoded = Decoded(number=number, prompt_id=prompt.prompt_id, phase=COMPARE, arm=arm.name)
            texts[arm.name] = decode_request(task, arm, prompt, decoded, log).tokens
            requests[arm.name].append(decoded)
            if request.signum is not None:
                raise InterruptedTraining(request.signum)
        for name, text in texts.items():
            others[name] += text != texts[PLAIN]
    return LiveComparison(
        arms={name: Arm(**summarise(done), other_texts=others[name]) for name, done in requests.items()},
        learned=controller.name,
        prompt_ids=tuple(prompt.prompt_id for prompt in task.heldout),
        max_new_tokens=task.max_new_tokens,
    )
