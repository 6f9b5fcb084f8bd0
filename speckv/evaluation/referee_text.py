# SPDX-License-Identifier: Apache-2.0
"""Verdicts, runs of one agent, prompt lengths and profiles as plain text."""

import textwrap
from typing import NamedTuple

from speckv.evaluation.baselines import BEST_FIXED, CLAIRVOYANT
from speckv.evaluation.compare import Comparison
from speckv.evaluation.metrics import ALL
from speckv.evaluation.table import format_interval, format_rate, render_table
from speckv.evaluation.verdicts import AHEAD, BEHIND, EQUAL, VS_FIRST, Family

SHOWN_TAUS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
VERDICT_NOTE = (
    "who is ahead of whom, at a chance of 5 % of any false claim in a family of comparisons (in brackets: speed-up "
    "over the one named, and p of a paired sign-flip test over prompts after Holm's adjustment)"
)
_WIDTH = 118


class Said(NamedTuple):
    """One line about a family.

    Attributes:
        word: The verdict that the line lists controllers under, or "" where it says who ranks first.
        text: The line.
    """

    word: str
    text: str


class Judged(NamedTuple):
    """What was found at one compression, or over all.

    Attributes:
        where: Which.
        lines: Against the best fixed gamma, then against the controller that ranks first.
    """

    where: str
    lines: tuple[Said, ...]


def format_p(value: float) -> str:
    """Renders a p-value; very small ones by their bound.

    >>> format_p(0.0412), format_p(0.00002), format_p(1.0)
    ('p=0.041', 'p<0.001', 'p=1.000')
    """
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"


def format_speedup(value: float) -> str:
    """Renders a speed-up, with more digits where three would show nothing of a difference.

    >>> format_speedup(1.0312), format_speedup(0.99978), format_speedup(1.0)
    ('1.031', '0.99978', '1.000')
    """
    hidden = 5e-7 < abs(value - 1.0) < 5e-4
    return f"{value:.6g}" if hidden else f"{value:.3f}"


def _family_lines(family: Family) -> list[Said]:
    lines = []
    if family.question == VS_FIRST:
        lines.append(Said("", f"{family.against} ranks first (pairs compared: {family.num_comparisons})"))
    for word in (AHEAD, BEHIND, EQUAL):
        said = [v for v in family.verdicts if v.word == word]
        if said:
            names = "; ".join(f"{v.controller} ({format_speedup(v.speedup)}, {format_p(v.p_holm)})" for v in said)
            lines.append(Said(word, f"{word} {family.against}: {names}"))
    return lines


def verdict_lines(comparison: Comparison) -> tuple[Judged, ...]:
    """Who is ahead of whom, compression by compression; empty where no controller is under test."""
    by_compression: dict[str, list[Said]] = {}
    for family in comparison.families:
        by_compression.setdefault(family.compression, []).extend(_family_lines(family))
    return tuple(
        Judged("all compressions, weighed alike" if compression == ALL else compression, tuple(lines))
        for compression, lines in by_compression.items()
    )


def verdict_sections(comparison: Comparison) -> list[str]:
    """The same as paragraphs, below what they mean."""
    judged = verdict_lines(comparison)
    if not judged:
        return []
    sections = [textwrap.fill(VERDICT_NOTE, _WIDTH, break_on_hyphens=False)]
    for where, lines in judged:
        indented = (
            textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
            for _, text in lines
        )
        sections.append("\n".join([where, *indented]))
    return sections


def seeds_section(comparison: Comparison) -> list[str]:
    """Runs of one agent each by itself, and their interquartile mean; empty where there are none."""
    rows = []
    for result in comparison.groups:
        if result.group.task != ALL or result.group.compression not in _compressions(comparison):
            continue
        for group in comparison.seed_groups:
            together = result.row(group.name)
            singles = " ".join(f"{result.row(m).geomean_vs_best_fixed.estimate:.3f}" for m in group.members)
            assert together.seeds_iqm is not None
            figures = (format_interval(i) for i in (together.geomean_vs_best_fixed, together.seeds_iqm))
            rows.append((group.name, result.group.compression, *figures, singles))
    if not rows:
        return []
    header = ("controller", "compression", "x best fixed", "interquartile mean", "each seed")
    return [
        "runs that differ by their seed: x best fixed with prompts and seeds resampled\n"
        f"{render_table(header, rows, num_left=2)}"
    ]


def length_section(comparison: Comparison) -> str:
    """Figures by length of the prompt."""
    header = ("prompt tokens", "compression", "controller", "prompts", "tok/s", "x plain decoding", "x best fixed")
    rows = []
    for found in comparison.lengths:
        group = found.result.group
        if group.compression == ALL:
            continue
        for name in (BEST_FIXED, *comparison.entrants, CLAIRVOYANT):
            row = found.result.row(name)
            speedups = (format_interval(i) for i in (row.speedup_vs_ar, row.speedup_vs_best_fixed))
            head = (found.bucket.name, group.compression, name, str(len(group.prompts)))
            rows.append((*head, format_rate(row.throughput), *speedups))
    longest = {found.bucket.name: found.bucket.longest_context for found in comparison.lengths}
    reach = ", ".join(f"{name}: {tokens}" for name, tokens in longest.items())
    title = f"by length of the prompt (longest prompt and text, in tokens, of {reach})"
    return f"{textwrap.fill(title, _WIDTH)}\n{render_table(header, rows, num_left=3)}"


def profile_section(comparison: Comparison) -> str:
    """Shares of prompts by speed-up."""
    header = ("controller", "compression", *(f">= {tau:g}" for tau in SHOWN_TAUS))
    rows = [
        (name, compression, *(f"{comparison.profile(name, compression).share(tau):.2f}" for tau in SHOWN_TAUS))
        for compression in _compressions(comparison)
        for name in (*comparison.entrants, CLAIRVOYANT)
    ]
    return f"share of prompts by speed-up over the best fixed gamma\n{render_table(header, rows, num_left=2)}"


def _compressions(comparison: Comparison) -> tuple[str, ...]:
    """Compressions, and all of them where there are several."""
    return tuple(dict.fromkeys(profile.compression for profile in comparison.profiles))
