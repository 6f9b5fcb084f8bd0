# SPDX-License-Identifier: Apache-2.0
"""Holds a cost table to the wall clock: whole live runs, predicted from their own steps' counts.

Nothing but time can differ: the steps that are predicted are those that were taken. What a table leaves out (moving
caches about, a machine that was slower while it was measured, attention that is not linear) shows here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speckv.cost import CostFit, CostTable
from speckv.decoding import DecodeStep, Engine, GenerationResult, RequestContext, generate
from speckv.decoding.clock import device_clock
from speckv.errors import ConfigError
from speckv.models import ModelPair
from speckv.observation import History, StepBatch, update_history
from speckv.profiling.pass_times import fit_of_runs
from speckv.profiling.random_gamma import RandomGamma
from speckv.runtime.constant import ConstantGamma
from speckv.types import GAMMA_MAX, Controller, IntArray, StoppingController


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """What is decoded live.

    Attributes:
        prompts: Texts.
        gammas: Constants that each prompt is decoded with, beside a random schedule.
        max_new_tokens: Token budget of a run.
    """

    prompts: tuple[str, ...]
    gammas: tuple[int, ...] = (0, 2, 5)
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.prompts:
            raise ConfigError("Expected at least one prompt to check a cost table on, got none.")
        if self.max_new_tokens < 2:
            raise ConfigError(f"Expected check_tokens of at least 2, got {self.max_new_tokens}.")
        if not all(0 <= gamma <= GAMMA_MAX for gamma in self.gammas):
            raise ConfigError(f"Expected check_gammas from 0 to {GAMMA_MAX}, got {list(self.gammas)}.")


def check_pair(table: CostTable, pair: ModelPair, plan: CheckPlan) -> CostFit:
    """Decodes live with a pair and compares with the table.

    Args:
        table: Covers the pair's compression, at batch 1.
        pair: On the machine that the table is of.
        plan: What to decode.
    """
    clock = device_clock(pair.target.device)
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, clock=clock)
    return check_engine(table, pair.config.compression, engine, encode_prompts(pair, plan), plan)


def encode_prompts(pair: ModelPair, plan: CheckPlan) -> list[list[int]]:
    """Token ids of the prompts; called before anything is measured, so that an hour's work is not lost to one of them.

    Raises:
        ConfigError: if a prompt and its output do not fit the models.
    """
    limit = min(pair.target.context_limit, pair.draft.context_limit) - plan.max_new_tokens
    prompts = [pair.encode(text) for text in plan.prompts]
    for text, prompt in zip(plan.prompts, prompts, strict=True):
        if not 1 <= len(prompt) <= limit:
            raise ConfigError(
                f"Expected check prompts of 1 to {limit} tokens, got {len(prompt)} in {text[:40]!r}. "
                "Name other prompts in check_prompts, or set check=false."
            )
    return prompts


def check_engine(
    table: CostTable, compression: str, engine: Engine, prompts: Sequence[Sequence[int]], plan: CheckPlan
) -> CostFit:
    """The same with an engine and token ids; `plan.prompts` is not looked at.

    Every prompt is decoded with every schedule, in an order that rotates.

    Raises:
        ConfigError: if no run took a decode step.
    """
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    arms: list[Controller] = [ConstantGamma(gamma) for gamma in plan.gammas]
    arms.append(RandomGamma(max((*plan.gammas, 1))))
    predicted: list[float] = []
    measured: list[float] = []
    tokens = 0
    engine.capture_ahead(max(map(len, prompts), default=0) + plan.max_new_tokens)
    for arm in arms:  # warm up: first calls of each width allocate and choose kernels
        generate(engine, prompts[0], arm, context=context, max_new_tokens=min(8, plan.max_new_tokens))
    for number, prompt in enumerate(prompts):
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            run = generate(engine, prompt, arm, context=context, max_new_tokens=plan.max_new_tokens)
            if run.steps:
                predicted.append(predicted_seconds(table, compression, len(prompt), run, arm))
                measured.append(measured_seconds(run, arm))
                tokens += sum(step.outcome.num_emitted for step in run.steps)
    return fit_of_runs(predicted, measured, prompts=len(prompts), tokens=tokens)


def predicted_seconds(
    table: CostTable, compression: str, prompt_len: int, run: GenerationResult, controller: Controller
) -> float:
    """What a table gives for the very steps of a run, decisions included where the controller charges them.

    Args:
        table: The times.
        compression: Of the target.
        prompt_len: Tokens of the prompt.
        run: A finished request.
        controller: Who drove it; one that decides inside steps is charged a decision a drafted token.
    """
    drafted, lags, contexts = step_counts(prompt_len, run.steps)
    seconds = float(table.step_seconds(compression, drafted, lags, contexts).sum())
    if not controller.charges_decision:
        return seconds
    asked = np.maximum(drafted, 1) if isinstance(controller, StoppingController) else np.ones_like(drafted)
    return seconds + table.controller_s * int(asked.sum())


def measured_seconds(run: GenerationResult, controller: Controller) -> float:
    """What a run took, on the same terms: a controller that charges nothing is not timed either."""
    return run.decode_s if controller.charges_decision else sum(step.outcome.seconds for step in run.steps)


def step_counts(prompt_len: int, steps: Sequence[DecodeStep]) -> tuple[IntArray, IntArray, IntArray]:
    """What `CostTable.step_seconds` takes, of each step of a run: tokens drafted, draft's lag, context."""
    history = History.start(1, 0.0, 0.0)
    rows = []
    for step in steps:
        rows.append((step.outcome.num_drafted, int(history.draft_lag[0]), prompt_len + int(history.emitted[0])))
        history = update_history(history, StepBatch.from_outcome(step.outcome))
    drafted, lags, contexts = np.array(rows, np.int64).reshape(-1, 3).T
    return drafted, lags, contexts
