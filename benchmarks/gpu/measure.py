# SPDX-License-Identifier: Apache-2.0
"""Stages that measure: `lossless`, `calibration`, `throughput` and `breakdown`. The most useful pieces are first."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.against_transformers import THEIRS, generated, make_engines, ours, theirs_assisted
from benchmarks.arms import Decode, run_arms
from benchmarks.divergence import explain
from benchmarks.gpu.models import (
    MEASURED,
    RANDOM,
    TUNING,
    graphs,
    is_random,
    load,
    main_pair,
    random_pair,
    real_pair,
)
from benchmarks.gpu.stage import Piece, Settings, device_slug
from benchmarks.random_policy import RandomPolicy
from benchmarks.step_breakdown import PROMPT, break_down_all
from speckv.agents.bandits.calibrated import CalibratedStopping
from speckv.agents.registry import default_settings
from speckv.commands.calibrate import shipped_check, typical_policy
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.decoding import Engine, RequestContext, SamplingConfig, generate
from speckv.models import ModelPair, PairConfig
from speckv.models.dtypes import dtype_name
from speckv.profiling.calibrate import CalibrationPlan, calibrate
from speckv.profiling.timing import TimingPlan
from speckv.runtime.constant import ConstantGamma
from speckv.runtime.learned import PolicyController
from speckv.runtime.policy import Policy

SHIPPED_CLOCK = "rtx3090-paper"
"""Cost table of the shipped policy that is run with this device's times, and the table where it has none."""


def _about(pair: ModelPair) -> dict[str, Any]:
    """Description of a pair; to be called after the runs, as `graphs` depends on them."""
    kind = {"pair": pair.config.name, "dtype": dtype_name(pair.target.dtype), "random_weights": is_random(pair)}
    return {**kind, "graphs": graphs(pair)}


# -- lossless ----------------------------------------------------------------------------------------------------------

CASES = (("float32", "fp16"), ("bfloat16", "fp16"), ("float16", "fp16"), ("auto", "nf4"), ("auto", "int8"))
"""Dtype and compression; NF4 and INT8 compute in the device's own dtype."""
FLOAT32_SHAPE = "llama-3.2-1b"
"""Of random pairs in float32: 8B would take 32 GB."""
LISTED = 12
"""Differences that are explained, a case; the others are counted."""


def lossless(settings: Settings) -> dict[str, Piece]:
    """Random gammas against plain decoding of the same engine, by dtype and compression.

    In 16 bits a wider pass may round another way and flip a near-tie; from there on both texts are right and differ.
    Each difference is listed with the gap between the target's two best tokens. In float32 there should be none; INT8
    chooses its outlier columns in every pass and may differ at any gap (docs/numerics.md).
    """
    cases = [case for case in CASES if not (settings.short and case[0] == "float16")]
    return {
        dtype if compression == "fp16" else compression: partial(compare_texts, settings, dtype, compression)
        for dtype, compression in cases
    }


def compare_texts(settings: Settings, dtype: str, compression: str, end: float) -> dict[str, Any]:
    """Compares texts of four prompts, or in little time of two, and of INT8, the slowest, of one."""
    if dtype == "float32" and not settings.tiny and real_pair(settings) is None:
        name = f"{FLOAT32_SHAPE} with its first 2 layers, random weights"
        config = random_pair(settings, dtype="float32")
        pair = load(replace(config, target=RANDOM + FLOAT32_SHAPE, draft_layers=2, name=name))
    else:
        pair = main_pair(settings, dtype=dtype, compression=compression)
    prompts = list(MEASURED.items())[:: 4 if settings.tiny else 2]
    if settings.short:
        prompts = prompts[: 1 if compression == "int8" else 2]
    budget = 12 if settings.tiny else 48
    found = {mode: compare_mode(pair, dict(prompts), mode, budget, end) for mode in ("greedy", "gumbel")}
    return _about(pair) | found


def compare_mode(pair: ModelPair, prompts: dict[str, str], mode: str, budget: int, end: float) -> dict[str, Any]:
    """Decodes each prompt plainly and with two random schedules, the second of which also stops inside steps."""
    sampling = SamplingConfig(mode=mode, seed=7)
    engine = Engine(pair.target, pair.draft, eos_token_ids=pair.eos_token_ids, sampling=sampling)
    context = RequestContext(compression=pair.target.compression, cost_ratio=0.3)
    count = dict.fromkeys(("texts", "identical", "prompts", "drafted", "accepted"), 0)
    differences: list[dict[str, Any]] = []
    for number, (name, text) in enumerate(prompts.items()):
        if number and time.monotonic() >= end:
            break
        ids = pair.encode(text)
        decode = partial(generate, engine, ids, context=context, max_new_tokens=budget, request=name)
        plain = decode(ConstantGamma(0)).tokens
        for schedule in range(2):
            rng = np.random.default_rng([number, schedule])
            result = decode(RandomPolicy(rng, stop=0.2 * schedule))
            count["texts"] += 1
            count["identical"] += result.tokens == plain
            count["drafted"] += sum(step.outcome.num_drafted for step in result.steps)
            count["accepted"] += sum(step.outcome.num_accepted for step in result.steps)
            if result.tokens != plain and len(differences) < LISTED:
                where = explain(pair.target, ids, plain, result.tokens, sampling=sampling, request=name)
                assert where is not None
                differences.append({"prompt": name, **where.to_dict()})
        count["prompts"] += 1
    return count | {"prompts_planned": len(prompts), "max_new_tokens": budget, "first_differences": differences}


# -- calibration -------------------------------------------------------------------------------------------------------

RANDOM_NOTE = (
    "Random weights in the published shapes, made on the device: what a pass takes does not depend on the values of "
    "the weights, but for the outlier columns of INT8, which a real model has more of. Texts and acceptance rates of "
    "such models mean nothing."
)
TINY = TimingPlan(reference_context=16, far_context=32, widths=(1, 3), repeats=1, warmups=1)
LIVE = ("qwen2.5-coder", "llama-8b-own-layers")
"""Pairs of `main_pair`, with weights and without."""


class Job(NamedTuple):
    """What is measured of a pair: its target's compressions, and batches."""

    pair: PairConfig
    compressions: tuple[str, ...]
    batches: tuple[int, ...]


def jobs(settings: Settings) -> dict[str, Job]:
    """Pair -> what is measured; those that `throughput` decodes come first.

    The pair with the draft of 3B is measured unquantised only: compressed, its target is that of the pair with 1B.
    """
    kinds = ("fp16", "nf4") if settings.short else ("fp16", "nf4", "int8")  # INT8 passes are the slowest
    wide = (1, 2) if settings.tiny else (1, 16) if settings.short else (1, 4, 16)
    usual = (1,) if settings.short else wide
    real = real_pair(settings)
    main = {LIVE[0]: Job(real, kinds, usual)} if real else {LIVE[1]: Job(random_pair(settings), ("fp16", "nf4"), usual)}
    main["llama-8b-1b"] = Job(random_pair(settings, "llama-3.2-1b"), kinds, wide)
    if not settings.tiny:  # it would be the same tiny pair
        main["llama-8b-3b"] = Job(random_pair(settings, "llama-3.2-3b"), ("fp16",), usual)
    return main


def calibration(settings: Settings) -> dict[str, Piece]:
    """Cost tables of the pairs."""
    return {key: partial(measure_costs, settings, key, job) for key, job in jobs(settings).items()}


def measure_costs(settings: Settings, key: str, job: Job, _: float = 0.0) -> dict[str, Any]:
    """Measures one pair and writes its table, which grows on disk with each compression."""
    path = table_path(settings, key)
    random_weights = job.pair.target.startswith(RANDOM)
    plan = CalibrationPlan(
        name=path.stem,
        pair=replace(job.pair, compression="fp16"),
        compressions=job.compressions,
        timing=TINY if settings.tiny else TimingPlan(),
        batches=job.batches,
        check=None if random_weights else shipped_check(),
        notes=RANDOM_NOTE if random_weights else "",
    )
    table = calibrate(plan, PolicyController(typical_policy()), load=load, keep=lambda so_far: so_far.save(path))
    return {
        "table": path.name,
        "pair": job.pair.name,
        "notes": plan.notes,
        "controller_s": table.controller_s,
        "checks": dict(table.checks),
        "compressions": {name: _summary(table, name) for name in job.compressions},
    }


def _summary(table: CostTable, compression: str) -> dict[str, Any]:
    entry = table.entry(compression)
    verify = dict(zip(entry.verify_widths, entry.verify_s, strict=True))
    return {
        "dtype": entry.dtype,
        "draft_pass_ms": 1e3 * entry.draft_s[0],
        "verify_ms_by_width": {str(w): 1e3 * verify[w] for w in (1, 2, 5, 9, 17) if w in verify},
        "cost_ratio": table.cost_ratio(compression),
        "worst_spread": max(entry.spread),
    }


def table_path(settings: Settings, key: str) -> Path:
    """File of a pair's cost table, beside the report."""
    return Path(settings.tables) / f"cost-{device_slug(settings.device)}-{key}.json"


# -- throughput --------------------------------------------------------------------------------------------------------

GAMMAS = (1, 2, 3, 4, 6, 8)
"""Fixed gammas that are tried."""
PLAIN = "ours, plain"


def throughput(settings: Settings) -> dict[str, Piece]:
    """Whole calls, arms interleaved: plain, best fixed gamma, controllers, transformers' own.

    The best fixed gamma is chosen on other prompts. Controllers decide by the table that `calibration` wrote for this
    device, if it is there. A random pair's acceptance rate is that of its damped layers: its ratios between arms
    show the loop's cost only.
    """
    compressions = ("fp16",) if settings.short else ("fp16", "nf4")
    return {compression: partial(measure_arms, settings, compression) for compression in compressions}


def measure_arms(settings: Settings, compression: str, end: float) -> dict[str, Any]:
    """Tokens a second of every arm; a third of the time at most goes to the choice of the fixed gamma."""
    began = time.monotonic()
    pair = main_pair(settings, compression=compression)
    table = decision_table(settings, compression)
    budget = 12 if settings.tiny else 64
    context = RequestContext(compression=compression, cost_ratio=table.cost_ratio(compression))
    few = 2 if settings.tiny else None
    tuning, measured = ({n: pair.encode(p) for n, p in [*texts.items()][:few]} for texts in (TUNING, MEASURED))
    engines = make_engines(pair, budget + max(map(len, [*tuning.values(), *measured.values()])))
    mine = partial(ours, engines.drafting, context=context, max_new_tokens=budget)

    def wait() -> None:
        if pair.target.device.type == "cuda":
            torch.cuda.synchronize(pair.target.device)

    sweep = {gamma: mine(ConstantGamma(gamma)) for gamma in GAMMAS[:few]}
    sweep_end = began + (end - began) / 3
    named = {f"ours, {gamma}": decode for gamma, decode in sweep.items()}
    tuned = run_arms(named, tuning, synchronise=wait, go_on=lambda: time.monotonic() < sweep_end)
    best = max(sweep, key=lambda gamma: tuned.tokens_per_s(f"ours, {gamma}"))
    learner = CalibratedStopping(default_settings("calibrated_stopping"), StepTimes.of(table), 0)
    controllers = [Policy.load("shipped").controller, learner]
    arms: dict[str, Decode] = {
        THEIRS: generated(pair, budget),
        PLAIN: ours(engines.alone, ConstantGamma(0), context, budget),
        f"ours, {best}": sweep[best],
        **{f"ours, {controller.name}": mine(controller) for controller in controllers},
        **theirs_assisted(pair, best, budget),
    }
    runs = run_arms(arms, measured, synchronise=wait, go_on=lambda: time.monotonic() < end)
    return {
        **_about(pair),
        "max_new_tokens": budget,
        "cost_table": table.name,
        "prompts": len(runs.seconds[PLAIN]),
        "prompts_planned": len(measured),
        "sweep_tokens_per_s": {name: tuned.tokens_per_s(name) for name in named},
        "best_fixed_gamma": best,
        "arms": {
            name: {
                "tokens_per_s": runs.tokens_per_s(name),
                "ratio_to_plain": runs.tokens_per_s(name) / runs.tokens_per_s(PLAIN),
                "prompts_with_another_text": runs.other_texts(name, PLAIN),
                "seconds": runs.seconds[name],
            }
            for name in arms
        },
    }


def decision_table(settings: Settings, compression: str) -> CostTable:
    """This device's cost table if it covers the compression, else a shipped one."""
    path = table_path(settings, LIVE[0] if real_pair(settings) is not None else LIVE[1])
    table = CostTable.load(path) if path.is_file() else None
    return table if table is not None and compression in table.compressions else CostTable.load(SHIPPED_CLOCK)


# -- breakdown ---------------------------------------------------------------------------------------------------------


def breakdown(settings: Settings) -> dict[str, Piece]:
    """Milliseconds of a step by part, one piece a gamma."""
    pair = main_pair(settings)
    ids = pair.encode(PROMPT)
    budget = 8 if settings.tiny else 64

    def take_apart(gamma: int, _: float) -> dict[str, Any]:
        return break_down_all(pair, ids, [gamma], budget)[str(gamma)] | _about(pair)

    gammas = (0, 2) if settings.tiny else (0, 4, 2) if settings.short else (0, 4, 2, 8, 1)
    return {f"gamma {gamma}": partial(take_apart, gamma) for gamma in gammas}
