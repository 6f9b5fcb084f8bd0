# SPDX-License-Identifier: Apache-2.0
"""The comparison as plain text."""

from collections.abc import Sequence

from speckv.evaluation.baselines import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    fixed_name,
)
from speckv.evaluation.compare import Comparison, GroupResult
from speckv.evaluation.metrics import ALL, Row
from speckv.evaluation.referee_text import length_section, profile_section, seeds_section, verdict_sections
from speckv.evaluation.table import format_interval, format_rate, render_table
from speckv.evaluation.timing import DecisionTime

SHOWN_GAMMAS = (1, 2, 4, 8, 16)
"""Constant gammas that a table shows; the JSON file holds every one."""

_COLUMNS = ("controller", "tok/s", "x plain decoding", "x best fixed", "tok/step", "drafted/tok", "gamma", "headroom")


def shown_controllers(comparison: Comparison) -> tuple[str, ...]:
    """Controllers that a table lists, baselines first and the bound last."""
    deepest = comparison.sums[0].gammas.shape[-1] - 1
    constants = [fixed_name(g) for g in SHOWN_GAMMAS if g <= deepest]
    return (
        AUTOREGRESSIVE,
        *constants,
        BEST_FIXED,
        TASK_ORACLE,
        REQUEST_ORACLE,
        *comparison.entrants,
        CLAIRVOYANT,
    )


def _cells(row: Row) -> tuple[str, ...]:
    unmeasured = row.headroom_share is None or row.controller == AUTOREGRESSIVE
    share = "" if unmeasured else f"{row.headroom_share:+.1%}"
    return (
        row.controller,
        format_rate(row.throughput),
        format_interval(row.speedup_vs_ar),
        format_interval(row.speedup_vs_best_fixed),
        f"{row.tokens_per_step:.2f}",
        f"{row.drafted_per_token:.2f}",
        f"{row.mean_gamma:.2f}",
        share,
    )


def _compression_section(comparison: Comparison, result: GroupResult) -> str:
    compression = result.group.compression
    title = (
        f"{compression}: cost ratio {comparison.setting.cost_ratio[compression]:.3f}, "
        f"best fixed gamma on train prompts {comparison.best_fixed_gammas[compression]}"
    )
    rows = [_cells(result.row(name)) for name in shown_controllers(comparison)]
    return f"{title}\n{render_table(_COLUMNS, rows)}"


def _overall_section(comparison: Comparison) -> str:
    result = comparison.group(ALL, ALL)
    header = ("controller", "tok/s", "x plain", "x best fixed", "geomean x plain", "geomean x best fixed")
    rows = [
        (
            row.controller,
            format_rate(row.throughput),
            format_interval(row.speedup_vs_ar),
            format_interval(row.speedup_vs_best_fixed),
            format_interval(row.geomean_vs_ar),
            format_interval(row.geomean_vs_best_fixed),
        )
        for row in (result.row(name) for name in shown_controllers(comparison))
    ]
    title = "all compressions: sums over sums, and the geometric mean of the compressions' speed-ups"
    return f"{title}\n{render_table(header, rows)}"


def _task_section(comparison: Comparison) -> str:
    header = ("task", "compression", "controller", "prompts", "tok/s", "x plain decoding", "x best fixed", "headroom")
    rows = []
    for result in comparison.groups:
        group = result.group
        if group.task == ALL or group.compression == ALL:
            continue
        for name in (BEST_FIXED, *comparison.entrants, CLAIRVOYANT):
            cells = _cells(result.row(name))
            rows.append((group.task, group.compression, name, str(len(group.prompts)), *cells[1:4], cells[7]))
    return f"by task\n{render_table(header, rows, num_left=3)}"


def render_comparison(comparison: Comparison, times: Sequence[DecisionTime] = ()) -> str:
    """The whole comparison: setting, a table a compression, all of them, seeds, verdicts, parts, decision times."""
    setting = comparison.setting
    single = [r for r in comparison.groups if r.group.task == ALL and r.group.compression != ALL]
    sections = [
        f"target  {setting.target}\ndraft   {setting.draft}\n"
        f"traces  sha256 {setting.traces_sha256[:16] or 'in memory'} ({setting.text})\n"
        f"cost    {setting.clock}\n"
        f"prompts {setting.train_prompts} train, {setting.test_prompts} test",
        *(_compression_section(comparison, result) for result in single),
    ]
    if len(single) > 1:
        sections.append(_overall_section(comparison))
    sections += [*seeds_section(comparison), *verdict_sections(comparison)]
    sections += [_task_section(comparison), length_section(comparison), profile_section(comparison)]
    sections.append(
        f"Brackets: 95 % paired bootstrap intervals, whole prompts resampled {setting.num_resamples} times"
        f"{' and seeds with them' if comparison.seed_groups else ''}.\n"
        "Headroom: share of the room between the best fixed gamma and the clairvoyant bound. "
        "task-oracle: the best fixed\ngamma of each task, tuned on train prompts; "
        "request-oracle: that of each test prompt, in hindsight."
    )
    sections.extend(
        f"decision time of {t.controller}: p50 {t.p50_us:.1f} us, p99 {t.p99_us:.1f} us (measured now)" for t in times
    )
    return "\n\n".join(sections) + "\n"
