# SPDX-License-Identifier: Apache-2.0
"""Live comparison of a learned controller with plain decoding and fixed gammas, in one process."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speckv.agents.runs.console import StopRequest
from speckv.agents.runs.requests import (
    COMPARE,
    DecodedRequest,
    LiveTask,
    RequestLog,
    decode_request,
    summarise,
    warm_up,
)
from speckv.agents.runs.run_folder import EVALUATION, Run, RunFolder
from speckv.evaluation.text import render_table
from speckv.files import canonical_json, write_atomically
from speckv.profiling.machine import describe_machine
from speckv.runtime.constant import ConstantGamma
from speckv.types import Controller

PLAIN = "plain"
REPORT = Path(EVALUATION) / "live.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRates:
    """Rates of one arm over all prompts.

    Attributes:
        tokens_per_s: Emitted tokens over decode seconds; prefill left out, decisions included.
        mean_drafted: Drafted tokens per step.
        other_texts: Number of prompts with another text than plain decoding's.
    """

    tokens_per_s: float
    tokens_per_step: float
    mean_drafted: float
    other_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveComparison:
    """Rates of all arms by name, plain decoding first, the learned controller last."""

    arms: dict[str, ArmRates]
    learned: str
    prompt_ids: tuple[str, ...]
    max_new_tokens: int

    @property
    def best_fixed(self) -> str:
        """The fixed gamma with the most tokens per second here; plain decoding is gamma 0."""
        fixed = {name: arm.tokens_per_s for name, arm in self.arms.items() if name != self.learned}
        return max(fixed, key=lambda name: fixed[name])

    def ratios(self) -> dict[str, float]:
        """Speed-up of the learned controller over plain decoding and over the best fixed gamma."""
        rate = self.arms[self.learned].tokens_per_s
        return {
            "x_plain": rate / self.arms[PLAIN].tokens_per_s,
            "x_best_fixed": rate / self.arms[self.best_fixed].tokens_per_s,
        }

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "arms": {name: asdict(arm) for name, arm in self.arms.items()},
            "best_fixed": self.best_fixed,
            "learned": self.learned,
            "max_new_tokens": self.max_new_tokens,
            "prompts": list(self.prompt_ids),
            **self.ratios(),
        }

    def render(self) -> str:
        """A table and its limits."""
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
    task: LiveTask, controller: Controller, fixed_gammas: Sequence[int], log: RequestLog, request: StopRequest
) -> LiveComparison:
    """Decodes every held-out prompt with every arm in a rotating order, the controller as a copy.

    The copy of an online learner updates from its own requests; the stored controller does not change.

    Raises:
        InterruptedTraining: after the request during which a signal came.
        SpecKVError: as `generate`.
    """
    arms: list[Controller] = [ConstantGamma(0, name=PLAIN)]
    arms += [ConstantGamma(gamma) for gamma in sorted(set(fixed_gammas))]
    arms.append(copy.deepcopy(controller))
    warm_up(task)
    requests: dict[str, list[DecodedRequest]] = {arm.name: [] for arm in arms}
    others = dict.fromkeys(requests, 0)
    for number, prompt in enumerate(task.heldout):
        texts: dict[str, tuple[int, ...]] = {}
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            decoded = DecodedRequest(number=number, prompt_id=prompt.prompt_id, phase=COMPARE, arm=arm.name)
            texts[arm.name] = decode_request(task, arm, prompt, decoded, log).tokens
            requests[arm.name].append(decoded)
            request.raise_if_set()
        for name, text in texts.items():
            others[name] += text != texts[PLAIN]
    return LiveComparison(
        arms={name: ArmRates(**summarise(done), other_texts=others[name]) for name, done in requests.items()},
        learned=controller.name,
        prompt_ids=tuple(prompt.prompt_id for prompt in task.heldout),
        max_new_tokens=task.max_new_tokens,
    )


def report_live(
    run: Run, task: LiveTask, folder: RunFolder, recent: Sequence[DecodedRequest], comparison: LiveComparison | None
) -> dict[str, float]:
    """Writes the report of a live run and prints its table; returns the final figures by TensorBoard tag."""
    report: dict[str, object] = {
        "agent": run.name,
        "cost": task.cost.name,
        "live": task.facts,
        "machine": describe_machine(getattr(task.engine.target, "device", None)),
        "run": str(folder.path),
    }
    final: dict[str, float] = {}
    if recent:
        figures = summarise(recent)
        final["final/tokens_per_s_recent"] = figures["tokens_per_s"]
        report["last_requests"] = {"requests": len(recent), **figures}
    if comparison is not None:
        report["comparison"] = comparison.to_dict()
        final["final/tokens_per_s"] = comparison.arms[comparison.learned].tokens_per_s
        final |= {f"final/{name}": value for name, value in comparison.ratios().items()}
        run.console.write(f"\n{comparison.render()}")
    write_atomically(folder / REPORT, canonical_json(report))
    return final
