# SPDX-License-Identifier: Apache-2.0
"""Where a decode step's time goes: draft, verify, signals, choosing, fetching, cutting caches, controller, the rest.

    python -m benchmarks.step_breakdown --weights FOLDER --gammas 0 2 4 --out benchmarks/results/step-breakdown.json

One prompt is decoded with each gamma. The parts are timed by wrapping the models and the loop's functions, which costs
some microseconds a call; what no part accounts for is the loop's own bookkeeping. On a GPU each part is waited for,
so that its time is its own: a step then takes longer than one that is not taken apart, which stands beside it.
"""

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import qwen
from speckv.decoding import Engine, GenerationResult, RequestContext, generate, loop
from speckv.decoding.protocols import CachedTokens, LanguageModel
from speckv.evaluation.text import render_table
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name
from speckv.models.signals import ScoredTokens, Scores
from speckv.profiling.machine import describe_machine
from speckv.runtime.constant import ConstantGamma

logger = logging.getLogger(__name__)
PROMPT = "Write a Python function that returns the longest word of a text, with a docstring and two examples."
FUNCTIONS: tuple[tuple[Any, str, str], ...] = (
    (loop, "propose", "choosing"),
    (loop, "verify", "choosing"),
    (loop, "to_host", "fetching"),
)
"""Functions of the loop, by where they are looked up, and the part that their time belongs to."""
PARTS = ("draft", "verify", "signals", "choosing", "fetching", "cutting", "controller", "rest")

Totals = dict[str, float]
Now = Callable[[], float]


@contextmanager
def timed(part: str, totals: Totals, now: Now) -> Iterator[None]:
    """Adds the time that its block takes to a part."""
    started = now()
    try:
        yield
    finally:
        totals[part] += now() - started


class TimedSequence:
    """A cached sequence whose calls are timed."""

    def __init__(self, inner: CachedTokens, part: str, totals: Totals, now: Now) -> None:
        self._inner, self._part, self._totals, self._now = inner, part, totals, now

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._inner.length

    def score(self, tokens: Sequence[int] | Tensor, *, num_logits: int | None = None) -> Scores:
        """Appends tokens; the signals count apart, but where a captured graph computes them with the pass."""
        with timed(self._part, self._totals, self._now):
            if not isinstance(self._inner, ScoredTokens):
                return self._inner.score(tokens, num_logits=num_logits)
            logits = self._inner.extend(tokens, num_logits=num_logits)
        with timed("signals", self._totals, self._now):
            return Scores.of(logits)

    def truncate(self, length: int) -> None:
        """Cuts the cache."""
        with timed("cutting", self._totals, self._now):
            self._inner.truncate(length)


class TimedModel:
    """A model whose sequences are timed."""

    def __init__(self, inner: LanguageModel, part: str, totals: Totals, now: Now = time.perf_counter) -> None:
        self._inner, self._part, self._totals, self._now = inner, part, totals, now

    @property
    def context_limit(self) -> int:
        """Longest sequence it takes, in tokens."""
        return self._inner.context_limit

    @property
    def vocab_size(self) -> int:
        """Tokens it scores."""
        return self._inner.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it runs, by which the loop decides what to wait for."""
        return getattr(self._inner, "device", torch.device("cpu"))

    def sequence(self) -> TimedSequence:
        """Starts an empty sequence."""
        return TimedSequence(self._inner.sequence(), self._part, self._totals, self._now)


@contextmanager
def timed_functions(totals: Totals, now: Now = time.perf_counter) -> Iterator[None]:
    """Times the loop's own functions while it lasts."""
    originals = [(owner, name, getattr(owner, name), part) for owner, name, part in FUNCTIONS]

    def wrap(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with timed(part, totals, now):
                return call(*args, **kwargs)

        return wrapped

    try:
        for owner, name, call, part in originals:
            setattr(owner, name, wrap(call, part))
        yield
    finally:
        for owner, name, call, _ in originals:
            setattr(owner, name, call)


def waiting_clock(device: torch.device) -> Now:
    """Seconds, after the device has been synchronised."""

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now if device.type == "cuda" else time.perf_counter


def break_down(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Sequence[int],
    gamma: int,
    max_new_tokens: int,
    *,
    now: Now = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds a step of each part, for one constant gamma; the prefill is left out.

    Args:
        target: The model that verifies.
        draft: The model that drafts.
        prompt: Token ids.
        gamma: In tokens.
        max_new_tokens: Budget.
        now: Clock of the parts and of the step; see `waiting_clock`.
    """
    totals: Totals = defaultdict(float)
    engine = Engine(TimedModel(target, "verify", totals, now), TimedModel(draft, "draft", totals, now), clock=now)
    with timed_functions(totals, now):
        run = _decode(engine, prompt, gamma, max_new_tokens, totals.clear)
    totals["controller"] = run.controller_s
    totals["rest"] = run.decode_s - sum(totals.values())
    steps = len(run.steps)
    return {part: 1e3 * totals[part] / steps for part in PARTS} | {"step": 1e3 * run.decode_s / steps, "steps": steps}


def _decode(
    engine: Engine, prompt: Sequence[int], gamma: int, max_new_tokens: int, begin: Callable[[], None]
) -> GenerationResult:
    return generate(
        engine,
        prompt,
        ConstantGamma(gamma),
        context=RequestContext(compression="fp16", cost_ratio=0.5),
        max_new_tokens=max_new_tokens,
        on_step=lambda _: begin() if len(engine.tokens) == 1 else None,
    )


def break_down_all(
    pair: ModelPair, prompt: Sequence[int], gammas: Sequence[int], max_new_tokens: int
) -> dict[str, dict[str, float]]:
    """Gamma -> milliseconds a step by part, and beside them of a step that is not taken apart.

    Args:
        pair: Target and draft.
        prompt: Token ids.
        gammas: In tokens.
        max_new_tokens: Budget of each text.
    """
    now = waiting_clock(pair.target.device)
    whole = Engine(pair.target, pair.draft)
    whole.capture_ahead(len(prompt) + max_new_tokens)
    whole.release()  # for the loop that is taken apart, which takes the same buffers
    break_down(pair.target, pair.draft, prompt, 2, 8, now=now)  # warm-up
    found = {}
    for gamma in gammas:
        parts = break_down(pair.target, pair.draft, prompt, gamma, max_new_tokens, now=now)
        started = [0.0]

        def begin(started: list[float] = started) -> None:
            started[0] = now()

        run = _decode(whole, prompt, gamma, max_new_tokens, begin)
        whole.release()
        found[str(gamma)] = parts | {"step_not_taken_apart": 1e3 * (now() - started[0]) / len(run.steps)}
    return found


def main() -> None:
    """Prints a table and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the Qwen pair's GGUF files")
    parser.add_argument("--gammas", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pair = qwen.load_qwen(options.weights, dtype=options.dtype)
    ids = pair.encode(PROMPT)
    found = break_down_all(pair, ids, options.gammas, options.max_new_tokens)
    rows = [(gamma, *(f"{parts[p]:.2f}" for p in PARTS), f"{parts['step']:.1f}") for gamma, parts in found.items()]
    logger.info("milliseconds a step\n%s", render_table(("gamma", *PARTS, "step"), rows))
    if options.out:
        report = {
            "what": "milliseconds a decode step, by part; prefill left out",
            "pair": qwen.NAME,
            "dtype": dtype_name(pair.target.dtype),
            "max_new_tokens": options.max_new_tokens,
            "gammas": found,
            "machine": describe_machine(pair.target.device),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
