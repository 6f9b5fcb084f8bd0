# SPDX-License-Identifier: Apache-2.0
"""Stage `lossless`: random gamma schedules against plain decoding of the same engine, by dtype and compression.

In 16 bits a wider pass may round another way and flip a near-tie; from there both texts are right and differ. Every
difference is listed with the gap between the target's two best tokens there, in nats and in units of rounding, so that
a reader can tell a near-tie from an error. In float32 there should be none; INT8 picks its outlier columns anew in
every pass and may differ at any gap (docs/numerics.md).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.divergence import explain
from benchmarks.gpu.models import RANDOM, graphs, is_random, load, main_pair, random_pair, real_pair
from benchmarks.gpu.prompts import MEASURED
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.work import Work
from benchmarks.random_policy import RandomPolicy
from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.models import ModelPair
from speckv.models.dtypes import dtype_name
from speckv.runtime.constant import ConstantGamma

CASES = (("float32", "fp16"), ("bfloat16", "fp16"), ("float16", "fp16"), ("auto", "nf4"), ("auto", "int8"))
"""Dtype and compression, what matters most first; NF4 and INT8 compute in the device's own dtype."""
MODES = ("greedy", "gumbel")
FLOAT32_SHAPE = "llama-3.2-1b"
LISTED = 12
"""Differences that are explained, a case; the others are counted."""


def run(settings: Settings, work: Work) -> None:
    """Checks every case."""
    chosen = cases(settings)
    for done, (dtype, compression) in enumerate(chosen):
        name = dtype if compression == "fp16" else compression
        work.piece(name, partial(check_case, settings, dtype, compression, work.share(len(chosen) - done)))


def cases(settings: Settings) -> list[tuple[str, str]]:
    """Dtypes and compressions that are checked: all, or in little time those that are used most."""
    return [case for case in CASES if not (settings.short and case[0] == "float16")]


def chosen_prompts(settings: Settings, compression: str) -> dict[str, str]:
    """Prompts of a case: four, or in little time two, and of INT8, the slowest, one."""
    prompts = list(MEASURED.items())[:: 4 if settings.tiny else 2]
    if settings.short:
        prompts = prompts[: 1 if compression == "int8" else 2]
    return dict(prompts)


def check_case(settings: Settings, dtype: str, compression: str, in_time: Callable[[], bool]) -> dict[str, Any]:
    """Loads the pair in one dtype and compression and compares texts."""
    exact = dtype == "float32"
    pair = float32_pair(settings) if exact else main_pair(settings, dtype=dtype, compression=compression)
    prompts = chosen_prompts(settings, compression)
    budget = 12 if settings.tiny else 48
    found = {mode: compare(pair, prompts, mode, max_new_tokens=budget, in_time=in_time) for mode in MODES}
    about = {"pair": pair.config.name, "dtype": dtype_name(pair.target.dtype), "random_weights": is_random(pair)}
    return {**about, "graphs": graphs(pair), **found}


def float32_pair(settings: Settings) -> ModelPair:
    """The pair in float32; of random ones a smaller shape, as 8B in float32 take 32 GB."""
    if settings.tiny or real_pair(settings) is not None:
        return main_pair(settings, dtype="float32")
    name = f"{FLOAT32_SHAPE} with its first 2 layers, random weights"
    usual = random_pair(settings, dtype="float32")
    return load(replace(usual, target=RANDOM + FLOAT32_SHAPE, draft_layers=2, name=name))


def compare(
    pair: ModelPair,
    prompts: dict[str, str],
    mode: str,
    *,
    max_new_tokens: int,
    in_time: Callable[[], bool],
    schedules: int = 2,
) -> dict[str, Any]:
    """Decodes each prompt plainly and under random schedules, the second of which also stops inside steps.

    Args:
        pair: Target and draft.
        prompts: Name -> text.
        mode: Of sampling.
        max_new_tokens: Budget of each text.
        in_time: Whether to go on; prompts that are left out show in their number.
        schedules: Random ones a prompt.

    Returns:
        Counts of texts, of identical ones and of prompts, and the differences.
    """
    sampling = SamplingConfig(mode=mode, seed=7)
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, sampling=sampling)
    context = RequestContext(compression=pair.target.compression, cost_ratio=0.3)
    texts = identical = done = drafted = accepted = 0
    differences: list[dict[str, Any]] = []
    for number, (name, text) in enumerate(prompts.items()):
        if done and not in_time():
            break
        ids = pair.encode(text)
        decode = partial(generate, engine, ids, context=context, max_new_tokens=max_new_tokens, request=name)
        plain = decode(ConstantGamma(0)).tokens
        for schedule in range(schedules):
            rng = np.random.default_rng([number, schedule])
            result = decode(RandomPolicy(rng, stop=0.2 * (schedule % 2)))
            texts += 1
            drafted += sum(step.outcome.num_drafted for step in result.steps)
            accepted += sum(step.outcome.num_accepted for step in result.steps)
            if result.tokens == plain:
                identical += 1
            elif len(differences) < LISTED:
                where = explain(pair.target, ids, plain, result.tokens, sampling=sampling, request=name)
                assert where is not None
                differences.append({"prompt": name, **where.to_dict()})
        done += 1
    return {
        "texts": texts,
        "identical": identical,
        "prompts": done,
        "prompts_planned": len(prompts),
        "max_new_tokens": max_new_tokens,
        "drafted": drafted,
        "accepted": accepted,
        "first_differences": differences,
    }
