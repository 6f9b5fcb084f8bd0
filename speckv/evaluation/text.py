# SPDX-License-Identifier: Apache-2.0
"""A comparison as plain text, and the tables and number formats of all text output."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from speckv.evaluation.bootstrap import Interval
from speckv.evaluation.compare import Comparison, GroupResult
from speckv.evaluation.entrants import ControllerMetrics
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import (
    AUTOREGRESSIVE,
    BEST_FIXED,
    CLAIRVOYANT,
    REQUEST_ORACLE,
    TASK_ORACLE,
    DecisionTime,
    fixed_name,
)
from speckv.evaluation.significance import AHEAD, BEHIND, EQUAL, VS_FIRST, Family

SHOWN_GAMMAS = (1, 2, 4, 8, 16)
"""Constant gammas in tables; the JSON file holds every one."""

_COLUMNS = ("controller", "tok/s", "x plain decoding", "x best fixed", "tok/step", "drafted/tok", "gamma", "headroom")
SHOWN_TAUS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
VERDICT_NOTE = (
    "who is ahead of whom, at a chance of 5 % of any false claim in a family of comparisons (in brackets: speed-up "
    "over the one named, and p of a paired sign-flip test over prompts after Holm's adjustment)"
)
_WIDTH = 118


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """Aligns columns: the first `num_left` to the left, the others to the right.

    >>> render_table(("a", "b"), [("x", "1.5")]).splitlines()
    ['a    b', '-  ---', 'x  1.5']
    """
    widths = [max(len(line[k]) for line in (header, *rows)) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        aligned = [c.ljust(w) if k < num_left else c.rjust(w) for k, (c, w) in pairs]
        return "  ".join(aligned).rstrip()

    return "\n".join((line(header), line(["-" * w for w in widths]), *(line(row) for row in rows)))


def format_interval(interval: Interval) -> str:
    """An estimate with its bounds.

    >>> format_interval(Interval(estimate=1.0312, low=0.99, high=1.0649))
    '1.031 [0.990, 1.065]'
    >>> format_interval(Interval(estimate=2.0, low=None, high=None))
    '2.000'
    """
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def format_rate(tokens_per_s: float) -> str:
    """A throughput with three to four digits, never as an exponent.

    >>> format_rate(5.1834), format_rate(123.456), format_rate(0.12321)
    ('5.183', '123.5', '0.1232')
    """
    digits = 1 if tokens_per_s >= 100 else 2 if tokens_per_s >= 10 else 3 if tokens_per_s >= 1 else 4
    return f"{tokens_per_s:.{digits}f}"


def format_p(value: float) -> str:
    """A p-value; very small ones as a bound.

    >>> format_p(0.0412), format_p(0.00002), format_p(1.0)
    ('p=0.041', 'p<0.001', 'p=1.000')
    """
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"


def format_speedup(value: float) -> str:
    """A speed-up, with more digits where three would hide a difference.

    >>> format_speedup(1.0312), format_speedup(0.99978), format_speedup(1.0)
    ('1.031', '0.99978', '1.000')
    """
    hidden = 5e-7 < abs(value - 1.0) < 5e-4
    return f"{value:.6g}" if hidden else f"{value:.3f}"


def shown_controllers(comparison: Comparison) -> tuple[str, ...]:
    """Controllers in a table, baselines first and the bound last."""
    deepest = comparison.sums[0].gammas.shape[-1] - 1
    constants = [fixed_name(g) for g in SHOWN_GAMMAS if g <= deepest]
    return (AUTOREGRESSIVE, *constants, BEST_FIXED, TASK_ORACLE, REQUEST_ORACLE, *comparison.entrants, CLAIRVOYANT)


def _cells(row: ControllerMetrics) -> tuple[str, ...]:
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
    """The whole comparison as plain text."""
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
    sections += [*_seeds_section(comparison), *_verdict_sections(comparison)]
    sections += [_task_section(comparison), _length_section(comparison), _profile_section(comparison)]
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


class VerdictLine(NamedTuple):
    """A line about a family; `outcome` is that of the listed controllers, "" in the line about who ranks first."""

    outcome: str
    text: str


class CompressionVerdicts(NamedTuple):
    """Lines about one compression, or about all: against the best fixed gamma, then against the first-ranked."""

    compression: str
    lines: tuple[VerdictLine, ...]


def _family_lines(family: Family) -> list[VerdictLine]:
    lines = []
    if family.question == VS_FIRST:
        lines.append(VerdictLine("", f"{family.against} ranks first (pairs compared: {family.num_comparisons})"))
    for outcome in (AHEAD, BEHIND, EQUAL):
        listed = [pair for pair in family.pairs if pair.outcome == outcome]
        if listed:
            names = "; ".join(f"{p.controller} ({format_speedup(p.speedup)}, {format_p(p.p_holm)})" for p in listed)
            lines.append(VerdictLine(outcome, f"{outcome} {family.against}: {names}"))
    return lines


def verdict_lines(comparison: Comparison) -> tuple[CompressionVerdicts, ...]:
    """Paired comparisons of each compression; empty without a controller under test."""
    by_compression: dict[str, list[VerdictLine]] = {}
    for family in comparison.families:
        by_compression.setdefault(family.compression, []).extend(_family_lines(family))
    return tuple(
        CompressionVerdicts("all compressions, weighed alike" if compression == ALL else compression, tuple(lines))
        for compression, lines in by_compression.items()
    )


def _verdict_sections(comparison: Comparison) -> list[str]:
    verdicts = verdict_lines(comparison)
    if not verdicts:
        return []
    sections = [textwrap.fill(VERDICT_NOTE, _WIDTH, break_on_hyphens=False)]
    for compression, lines in verdicts:
        indented = (
            textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
            for _, text in lines
        )
        sections.append("\n".join([compression, *indented]))
    return sections


def _seeds_section(comparison: Comparison) -> list[str]:
    rows = []
    for result in comparison.groups:
        if result.group.task != ALL or result.group.compression not in _compressions(comparison):
            continue
        for group in comparison.seed_groups:
            together = result.row(group.name)
            singles = " ".join(f"{result.row(m).geomean_vs_best_fixed.estimate:.3f}" for m in group.members)
            assert together.seeds_iqm is not None
            intervals = (format_interval(i) for i in (together.geomean_vs_best_fixed, together.seeds_iqm))
            rows.append((group.name, result.group.compression, *intervals, singles))
    if not rows:
        return []
    header = ("controller", "compression", "x best fixed", "interquartile mean", "each seed")
    return [
        "runs that differ by their seed: x best fixed with prompts and seeds resampled\n"
        f"{render_table(header, rows, num_left=2)}"
    ]


def _length_section(comparison: Comparison) -> str:
    header = ("prompt tokens", "compression", "controller", "prompts", "tok/s", "x plain decoding", "x best fixed")
    rows = []
    longest: dict[str, int] = {}
    for result in comparison.lengths:
        group, bucket = result.group, result.bucket
        assert bucket is not None
        longest[bucket.name] = bucket.longest_context
        if group.compression == ALL:
            continue
        for name in (BEST_FIXED, *comparison.entrants, CLAIRVOYANT):
            row = result.row(name)
            speedups = (format_interval(i) for i in (row.speedup_vs_ar, row.speedup_vs_best_fixed))
            head = (bucket.name, group.compression, name, str(len(group.prompts)))
            rows.append((*head, format_rate(row.throughput), *speedups))
    reach = ", ".join(f"{name}: {tokens}" for name, tokens in longest.items())
    title = f"by length of the prompt (longest prompt and text, in tokens, of {reach})"
    return f"{textwrap.fill(title, _WIDTH)}\n{render_table(header, rows, num_left=3)}"


def _profile_section(comparison: Comparison) -> str:
    header = ("controller", "compression", *(f">= {tau:g}" for tau in SHOWN_TAUS))
    rows = [
        (name, compression, *(f"{comparison.profile(name, compression).share(tau):.2f}" for tau in SHOWN_TAUS))
        for compression in _compressions(comparison)
        for name in (*comparison.entrants, CLAIRVOYANT)
    ]
    return f"share of prompts by speed-up over the best fixed gamma\n{render_table(header, rows, num_left=2)}"


def _compressions(comparison: Comparison) -> tuple[str, ...]:
    return tuple(dict.fromkeys(profile.compression for profile in comparison.profiles))
