# SPDX-License-Identifier: Apache-2.0
"""The content of the page as plain data: the comparison, learning curves, and prompts to step through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import speckv
from speckv.cost import CostTable
from speckv.evaluation.compare import Comparison
from speckv.evaluation.curves import Curve
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT, compile_pair
from speckv.evaluation.results import comparison_json, interval_json
from speckv.evaluation.summary import verdict
from speckv.evaluation.text import VERDICT_NOTE, shown_controllers, verdict_lines
from speckv.report.texts import TokenTexts
from speckv.report.timelines import Player, make_timelines, players_of
from speckv.runtime.constant import ConstantPerCompression
from speckv.traces import TraceSet
from speckv.types import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownController:
    """A controller on the page, with its provenance (label -> value) and its learning curve, if it has one."""

    controller: Controller
    facts: Mapping[str, str]
    curve: Curve | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTexts:
    """Bytes of tokens by id, a sentence on their origin, and texts of prompts by id, where known."""

    pieces: Mapping[int, bytes]
    source: str
    prompts: Mapping[str, str]


def page_content(
    comparison: Comparison,
    shown: Sequence[ShownController],
    *,
    test: TraceSet,
    cost: CostTable,
    texts: PageTexts,
    prompts_per_task: int,
) -> dict[str, object]:
    """The content of the page as plain data; `shown` is in the comparison's order."""
    return {
        "title": f"{', '.join(comparison.entrants) or CLAIRVOYANT} against the best fixed gamma",
        "version": speckv.__version__,
        "verdict": verdict(comparison),
        "facts": setting_facts(comparison, test, cost),
        "runs": [{"name": s.controller.name, "facts": list(s.facts.items())} for s in shown],
        "verdicts": {"note": VERDICT_NOTE, "parts": verdict_lines(comparison)},
        "comparison": comparison_json(comparison),
        "listed": list(shown_controllers(comparison)),
        "curves": [_curve(s.controller.name, s.curve) for s in shown if s.curve is not None],
        "without_curve": [s.controller.name for s in shown if s.curve is None],
        "timeline": _timeline(comparison, shown, test, cost, texts, prompts_per_task),
    }


def setting_facts(comparison: Comparison, test: TraceSet, cost: CostTable) -> list[tuple[str, str]]:
    """Models, recordings, cost table and statistics: label and value."""
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


def choose_prompts(comparison: Comparison, per_task: int) -> tuple[str, ...]:
    """Ids of at most `per_task` prompts of each task whose speed-up over the best fixed gamma is nearest to the median.

    Nearest first; of equally near ones the first by name.
    """
    grid = comparison.grid
    by_name = {sums.name: sums.seconds.sum(axis=1) for sums in comparison.sums}
    ours, fixed = by_name[comparison.main_controller], by_name[BEST_FIXED]
    chosen: list[str] = []
    for task in sorted(set(grid.tasks)):
        rows = np.flatnonzero((np.array(grid.tasks) == task) & (ours > 0))
        ratio = fixed[rows] / ours[rows]
        distance = np.abs(ratio - np.median(ratio)) if len(rows) else ratio
        order = np.argsort(distance, kind="stable")[:per_task]
        chosen.extend(grid.prompt_ids[row] for row in rows[order])
    return tuple(chosen)


def describe_rule(comparison: Comparison, per_task: int) -> str:
    """The rule of `choose_prompts` in a sentence."""
    number = f"{per_task} test prompts" if per_task > 1 else "test prompt"
    return (
        f"Of each task the {number} nearest to the task's median speed-up of {comparison.main_controller} over "
        "the best fixed gamma, all compressions together. The text of the prompts plays no part."
    )


def _curve(controller: str, curve: Curve) -> dict[str, object]:
    return {
        "controller": controller,
        "num_prompts": curve.num_prompts,
        "best_step": max(curve.points, key=lambda point: point.mean).step,
        "points": {
            name: [[p.step, *interval_json(p.over_best_fixed[name]).values()] for p in curve.points]
            for name in curve.points[0].over_best_fixed
        },
    }


def _timeline(
    comparison: Comparison,
    shown: Sequence[ShownController],
    test: TraceSet,
    cost: CostTable,
    texts: PageTexts,
    per_task: int,
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
    controllers = [fixed, *(s.controller for s in shown)]
    players = [*players_of(controllers, compiled, compiled_cost, sequences), Player(CLAIRVOYANT)]
    tokens = TokenTexts(texts.pieces)
    timelines = make_timelines(players, compiled, compiled_cost, sequences, texts=tokens, prompts=texts.prompts)
    return {
        "rule": describe_rule(comparison, per_task),
        "words": texts.source,
        "num_missing": len(tokens.missing),
        "players": [player.name for player in players],
        "learners": [player.name for player in players if player.learned is not None],
        "sequences": timelines,
    }
