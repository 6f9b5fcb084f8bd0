# SPDX-License-Identifier: Apache-2.0
"""An exported policy inside llama-cpp-python, beside what llama.cpp does by itself, in one process.

    python -m benchmarks.in_llama_cpp --weights GGUF_FOLDER --prompts TEST.jsonl --train TRAIN.jsonl \
        --policies mine.speckv --out benchmarks/results/in-llama-cpp.json

Arms: plain; the best constant of 0 to 8, found by decoding train prompts; llama.cpp's own rule, which ends a draft
before a token of probability below p-min, at its former defaults; the policies. Every prompt is decoded by all arms,
greedily, in an order that rotates, from empty caches. Seconds are those of whole calls, both models' reading of the
prompt included; beside them stand those from the first token on. Plain decoding keeps no logits but the newest; where a
draft is used, llama-cpp-python keeps them all, which makes its reading of the prompt slower. A policy that is known
never to draft decodes as its users are told to: without a draft model (`PolicyDrafting.target_options`).
"""

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from benchmarks.arms import (
    NUM_RESAMPLES,
    BestConstant,
    Decode,
    Runs,
    add_constant_arguments,
    as_ratio,
    run_arms,
    telling,
    tune,
)
from benchmarks.llamacpp.models import Setting, add_arguments, encode, ends, machine
from speckv.agents.rules.llama_cpp import LlamaCpp, LlamaCppSettings
from speckv.evaluation.bootstrap import resample_counts
from speckv.integrations.llama_cpp import LlamaDraft, LookupDraft, PolicyDrafting, draft_model
from speckv.profiling.prompts import Prompt, first_of_each, read_prompts
from speckv.runtime import Policy, load
from speckv.runtime.constant import ConstantGamma

logger = logging.getLogger(__name__)
PLAIN, BEST, P_MIN = "plain", "best constant", "p-min"
N_MAX, P_LEAST = 16, 0.75
GAMMAS = tuple(range(9))
TASKS = ("code", "math", "chat", "summarization")


class PMin:
    """llama.cpp's `--spec-draft-n-max` and `--spec-draft-p-min`, with our draft: the unsure token is left out.

    llama.cpp takes the probability among the ten likeliest tokens; here it is the one among all.
    """

    def __init__(self, draft: LlamaDraft, n_max: int = N_MAX, p_min: float = P_LEAST) -> None:
        self._draft, self._n_max, self._p_min = draft, n_max, p_min

    def __call__(self, ids: Any, /, **_: Any) -> Any:
        """Drafts while the draft is sure."""
        found: list[int] = []
        self._draft.read(np.array(ids, np.intc))
        while len(found) < min(self._n_max, self._draft.room(len(ids))):
            proposed = self._draft.propose(signals=True)
            if proposed.signals[1] < self._p_min:
                break
            found.append(proposed.token)
            if proposed.ends:
                break
        return np.array(found, np.intc)


class Bench:
    """The models, and ways to decode with them.

    Attributes:
        decode_seconds: Arm -> seconds from the first token on, one a call, its warm-up first.
        drafters: Arm -> what drafted.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.setting, self.options = Setting.of(options), options
        self.draft = self.setting.load_draft()
        self.alone = self.setting.load_target()
        self.target = self.setting.load_target(
            logits_all=True, draft_model=draft_model(Policy.of(ConstantGamma(0)), self.draft)
        )
        self.decode_seconds: dict[str, list[float]] = defaultdict(list)
        self.drafters: dict[str, Any] = {}

    def plain(self) -> Decode:
        """Without a draft."""
        return lambda ids, _: self._decode(PLAIN, self.alone, ids)

    def drafted(self, name: str, drafter: Any) -> Decode:
        """With a drafter; one of ours gets to see the target."""
        self.drafters[name] = drafter
        if isinstance(drafter, PolicyDrafting) and not drafter.target_options():
            return lambda ids, _: self._decode(name, self.alone, ids)
        self.target.draft_model = drafter
        if isinstance(drafter, PolicyDrafting):
            drafter.attach(self.target)

        def decode(ids: Sequence[int], _: str) -> list[int]:
            self.target.draft_model = drafter
            if isinstance(drafter, PolicyDrafting):
                drafter.new_request()
            return self._decode(name, self.target, ids)

        return decode

    def policy(self, name: str, policy: Policy, draft: Any = None) -> Decode:
        """With a policy."""
        options = {"max_new_tokens": self.options.max_new_tokens, "exact": self.options.exact}
        return self.drafted(name, draft_model(policy, draft or self.draft, **options))

    def constant(self, name: str, gamma: int) -> Decode:
        """With a constant."""
        return self.policy(name, Policy.of(ConstantGamma(gamma)))

    def _decode(self, name: str, llama: Any, ids: Sequence[int]) -> list[int]:
        llama.reset()
        self.draft.reset()
        tokens: list[int] = []
        began = 0.0
        for token in llama.generate(ids, temp=0.0, top_k=1):
            began = began or time.perf_counter()
            tokens.append(int(token))
            if len(tokens) == self.options.max_new_tokens or ends(llama, token):
                break
        self.decode_seconds[name].append(time.perf_counter() - began)
        return tokens


def best_constant(bench: Bench) -> BestConstant:
    """The constant that was given, or the best one in this loop on train prompts."""
    options = bench.options
    if options.gamma is not None:
        return BestConstant(gamma=options.gamma)
    found = tune(
        {gamma: bench.constant(f"constant, {gamma}", gamma) for gamma in options.gammas},
        {
            p.prompt_id: encode(bench.target, p.text)
            for p in choose(bench, options.train, "train", options.train_per_task)
        },
        on_prompt=lambda name, _: logger.info("tuned on %s", name),
    )
    logger.info("best constant: %d of %s", found.gamma, {g: round(s, 1) for g, s in found.seconds.items()})
    return found


def make_arms(bench: Bench, gamma: int) -> dict[str, Decode]:
    """Name -> how to decode."""
    options = bench.options
    best = f"{BEST}, {gamma}"
    arms = {PLAIN: bench.plain(), best: bench.constant(best, gamma)}
    arms[P_MIN] = bench.drafted(P_MIN, PMin(LlamaDraft(llama_cpp, bench.draft)))
    if options.p_min_kept:
        name = f"{P_MIN}, the unsure token kept"
        arms[name] = bench.policy(name, Policy.of(LlamaCpp(LlamaCppSettings(n_max=N_MAX, p_min=P_LEAST))))
    for path in options.policies:
        policy = load(path)
        name = f"ours, {policy.name}"
        arms[name] = bench.policy(name, policy)
    for path in options.lookup_policies:
        policy = load(path)
        name = f"ours on a lookup, {policy.name}"
        arms[name] = bench.policy(name, policy, LookupDraft())
    if options.lookup:
        name = "llama-cpp-python's lookup"
        arms[name] = bench.drafted(name, LlamaPromptLookupDecoding())
    return arms


def first_difference(text: Sequence[int], other: Sequence[int]) -> int | None:
    """Place of the first token that differs, None if none does."""
    if list(text) == list(other):
        return None
    pairs = enumerate(zip(text, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(text), len(other)))


class Report:
    """Renders what was measured so far.

    Args:
        bench: Holds times that `Runs` does not.
        prompts: Test prompts, in order.
        best: The best constant.
    """

    def __init__(self, bench: Bench, prompts: Sequence[Prompt], best: BestConstant) -> None:
        self._bench, self._prompts, self._best = bench, prompts, best

    def render(self, runs: Runs) -> str:
        """The result, as JSON."""
        bench, options = self._bench, self._bench.options
        done = len(runs.texts[PLAIN])
        counts = resample_counts([p.task for p in self._prompts[:done]], NUM_RESAMPLES, 0)
        content = {
            "what": "greedy, arms interleaved in one process, caches empty before each call",
            "pair": bench.setting.pair,
            "kernel": bench.setting.kernel(bench.setting.target, bench.setting.cache),
            "exact": options.exact,
            "max_new_tokens": options.max_new_tokens,
            "prompts": [p.prompt_id for p in self._prompts[:done]],
            "best_constant": self._best.as_json(),
            "p_min": {"n_max": N_MAX, "p_min": P_LEAST},
            "arms": {name: self._arm(name, runs, counts) for name in runs.seconds},
            "machine": machine(bench.setting),
        }
        return json.dumps(content, indent=1) + "\n"

    def _arm(self, name: str, runs: Runs, counts: Any) -> dict[str, Any]:
        texts, plain = runs.texts[name], runs.texts[PLAIN]
        whole, later = ({arm: np.array(s) for arm, s in clock.items()} for clock in (runs.seconds, self._later(runs)))
        differs = [first_difference(a, b) for a, b in zip(texts, plain, strict=True)]
        found: dict[str, Any] = {
            "tokens_per_s": runs.tokens_per_s(name),
            "tokens_per_s_from_the_first_token_on": (sum(map(len, texts)) - len(texts)) / float(later[name].sum()),
            "seconds": runs.seconds[name],
            "seconds_from_the_first_token_on": later[name].tolist(),
            "tokens": [len(text) for text in texts],
            "prompts_with_another_text": sum(place is not None for place in differs),
            "first_differences": differs,
        }
        for what, reference in (("plain", PLAIN), ("best_constant", f"{BEST}, {self._best.gamma}"), ("p_min", P_MIN)):
            found[f"speedup_over_{what}"] = as_ratio(whole[reference], whole[name], counts)
            found[f"speedup_over_{what}_from_the_first_token_on"] = as_ratio(later[reference], later[name], counts)
        drafter = self._bench.drafters.get(name)
        if isinstance(drafter, PolicyDrafting):
            found["never_drafts"] = drafter.never_drafts
            found["totals_with_warm_up"] = asdict(drafter.totals)
            found["fallbacks"] = dict(drafter.policy.warnings)
            found["trained_on"] = dict(drafter.policy.trained_on)
        return found

    def _later(self, runs: Runs) -> dict[str, list[float]]:
        return {name: self._bench.decode_seconds[name][1:] for name in runs.seconds}  # the first call warmed up


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.in_llama_cpp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--prompts", nargs="+", required=True, help="test prompts")
    parser.add_argument("--per-task", type=int, default=3)
    add_constant_arguments(parser, GAMMAS)
    parser.add_argument("--policies", nargs="*", default=[], help="exported policies' folders")
    parser.add_argument("--lookup-policies", nargs="*", default=[], help="the same, to draft with a lookup")
    parser.add_argument("--lookup", action="store_true", help="also llama-cpp-python's own lookup, at its default")
    parser.add_argument("--p-min-kept", action="store_true", help="also p-min as a policy: the unsure token stays")
    parser.add_argument("--exact", action="store_true", help="no draft longer than leaves the text as it is, by trial")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-prompt-tokens", type=int, default=512)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def choose(bench: Bench, paths: Sequence[str], split: str, per_task: int) -> list[Prompt]:
    """The first prompts of each task that fit."""
    options = bench.options
    fitting = [
        prompt
        for prompt in read_prompts(paths)
        if prompt.split == split
        and prompt.task in options.tasks
        and len(encode(bench.target, prompt.text)) <= options.max_prompt_tokens
    ]
    return first_of_each(fitting, per_task)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and writes JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    bench = Bench(options)
    prompts = choose(bench, options.prompts, "test", options.per_task)
    best = best_constant(bench)
    arms, report = make_arms(bench, best.gamma), Report(bench, prompts, best)

    encoded = {p.prompt_id: encode(bench.target, p.text) for p in prompts}
    runs = run_arms(arms, encoded, on_prompt=telling(report.render, options.out))
    logger.info(report.render(runs))


if __name__ == "__main__":
    main()
