# SPDX-License-Identifier: Apache-2.0
"""What the page says, as plain data: the comparison's own record, and what a reader can look at besides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import speckv
from speckv.cost import CostTable
from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.compare import Comparison
from speckv.evaluation.curves import Curve
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT, compile_pair
from speckv.evaluation.results import comparison_json, rounded
from speckv.evaluation.significance import VS_BEST_FIXED
from speckv.evaluation.text import VERDICT_NOTE, format_interval, format_p, shown_controllers, verdict_lines
from speckv.report.choosing import choose_prompts, describe_rule
from speckv.report.following import Player, players_of
from speckv.report.texts import TokenTexts
from speckv.report.timelines import make_timelines
from speckv.runtime.constant import ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A controller on the page.

    Attributes:
        controller: What decides.
        facts: What is known of where it comes from, in words: label -> value.
        curve: How it got better, if it learned step by step.
    """

    controller: Controller
    facts: Mapping[str, str]
    curve: Curve | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Where texts come from.

    Attributes:
        pieces: Token id -> bytes.
        source: Says where they are from, or why there are none.
        prompts: Prompt id -> text, as far as it is known.
    """

    pieces: Mapping[int, bytes]
    source: str
    prompts: Mapping[str, str]


def page_content(
    comparison: Comparison,
    shown: Sequence[Shown],
    *,
    test: TraceSet,
    cost: CostTable,
    words: Words,
    prompts_per_task: int,
) -> dict[str, object]:
    """Gathers everything.

    Args:
        comparison: Of the controllers on the test prompts.
        shown: The controllers, in the comparison's order.
        test: The test prompts.
        cost: The clock.
        words: Texts of tokens and prompts.
        prompts_per_task: How many of each task can be stepped through.

    Returns:
        Plain data; the same for the same arguments.
    """
    return {
        "title": f"{', '.join(comparison.entrants) or CLAIRVOYANT} against the best fixed gamma",
        "version": speckv.__version__,
        "verdict": verdict(comparison),
        "facts": setting_facts(comparison, test, cost),
        "runs": [{"name": s.controller.name, "facts": list(s.facts.items())} for s in shown],
        "judged": {"note": VERDICT_NOTE, "parts": verdict_lines(comparison)},
        "comparison": comparison_json(comparison),
        "listed": list(shown_controllers(comparison)),
        "curves": [_curve(s.controller.name, s.curve) for s in shown if s.curve is not None],
        "without_curve": [s.controller.name for s in shown if s.curve is None],
        "timeline": _timeline(comparison, shown, test, cost, words, prompts_per_task),
    }


def verdict(comparison: Comparison) -> str:
    """What the table says, in a sentence."""
    result = comparison.group(ALL, ALL)
    bound = result.row(CLAIRVOYANT).geomean_vs_best_fixed.estimate
    prompts = f"On {comparison.setting.test_prompts} test prompts"
    family = comparison.overall(VS_BEST_FIXED)
    if family is None:
        return f"{prompts} the clairvoyant bound is {bound:.3f} times as fast as the best fixed gamma."
    rows = [result.row(name) for name in comparison.entrants]
    best = max(rows, key=lambda row: row.geomean_vs_best_fixed.estimate)
    pair = next(p for p in family.pairs if p.controller == best.controller)
    compressions = comparison.grid.compressions
    mean = f", geometric mean over {', '.join(compressions)}" if len(compressions) > 1 else f" at {compressions[0]}"
    first = f", the first of {len(rows)} controllers," if len(rows) > 1 else ""
    return (
        f"{prompts} {best.controller}{first} decodes {format_interval(best.geomean_vs_best_fixed)} times as fast as "
        f"the best fixed gamma{mean}, and is {pair.outcome} it ({format_p(pair.p_holm)}). The clairvoyant bound, which "
        f"no controller can pass, is {bound:.3f}."
    )


def setting_facts(comparison: Comparison, test: TraceSet, cost: CostTable) -> list[tuple[str, str]]:
    """What was compared on what: label and value."""
    setting, metadata = comparison.setting, test.metadata
    sampling = f"{setting.sampling} decoding"
    if metadata.is_sampled:
        sampling += f" at temperature {metadata.sampling.get('temperature')}"
    by_compression = [
        (
            name,
            f"times {setting.cost_check[name]}, draft pass / target pass {setting.cost_ratio[name]:.3f}, "
            f"best fixed gamma {comparison.best_fixed_gammas[name]}",
        )
        for name in comparison.grid.compressions
    ]
    return [
        ("Target", setting.target),
        ("Draft", setting.draft),
        ("Arithmetic", ", ".join(f"{name} {dtype}" for name, dtype in setting.dtype.items())),
        ("Recordings", f"{sampling}, up to {metadata.max_new_tokens} tokens; sha256 {test.sha256 or 'in memory'}"),
        ("Cost table", f"{setting.clock}, batch {cost.batch}; sha256 {cost.sha256}"),
        *by_compression,
        (
            "Prompts",
            f"{setting.test_prompts} test prompts; the best fixed gamma is tuned on {setting.train_prompts} others",
        ),
        (
            "Intervals",
            f"95 %, paired, whole prompts resampled {setting.num_resamples} times"
            f"{' and seeds with them' if comparison.seed_groups else ''}, seed {setting.seed}",
        ),
    ]


def _curve(controller: str, curve: Curve) -> dict[str, object]:
    return {
        "controller": controller,
        "num_prompts": curve.num_prompts,
        "best_step": max(curve.points, key=lambda point: point.mean).step,
        "points": {
            name: [[point.step, *_bounds(point.over_best_fixed[name])] for point in curve.points]
            for name in curve.points[0].over_best_fixed
        },
    }


def _bounds(interval: Interval) -> list[float | None]:
    return [rounded(value) for value in (interval.estimate, interval.low, interval.high)]


def _timeline(
    comparison: Comparison, shown: Sequence[Shown], test: TraceSet, cost: CostTable, words: Words, per_task: int
) -> dict[str, object]:
    chosen = choose_prompts(comparison, per_task)
    compiled, compiled_cost = compile_pair(test, cost)
    sequences = [
        number
        for prompt in chosen
        for number, (name, length) in enumerate(zip(compiled.prompt_ids, compiled.length, strict=True))
        if name == prompt and length > 1
    ]
    fixed = ConstantPerCompression(comparison.best_fixed_gammas, name=BEST_FIXED)
    everyone = [fixed, *(s.controller for s in shown)]
    players = [*players_of(everyone, compiled, compiled_cost, sequences), Player(CLAIRVOYANT)]
    texts = TokenTexts(words.pieces)
    made = make_timelines(players, compiled, compiled_cost, sequences, texts=texts, prompts=words.prompts)
    return {
        "rule": describe_rule(comparison, per_task),
        "words": words.source,
        "num_missing": len(texts.missing),
        "players": [player.name for player in players],
        "learners": [player.name for player in players if player.learned is not None],
        "sequences": made,
    }
