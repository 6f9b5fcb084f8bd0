# SPDX-License-Identifier: Apache-2.0
"""The end of a run on one screen: the number to beat, the result, the verdict."""

import textwrap

from speckv.evaluation.bootstrap import MIN_PROMPTS
from speckv.evaluation.compare import Comparison
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT
from speckv.evaluation.significance import VS_BEST_FIXED
from speckv.evaluation.text import format_interval, format_p, format_rate, render_table

WIDTH = 100
MOST_ROWS = 8
"""Most controllers on the screen; `results.txt` has all."""


def render_summary(comparison: Comparison) -> str:
    """At most 20 lines of at most 100 characters: setting, tables, verdict."""
    setting = comparison.setting
    return "\n".join(
        [
            _wrapped(
                f"{setting.test_prompts} test prompts; seconds from cost table {setting.clock}; "
                f"best fixed gamma tuned on {setting.train_prompts} other prompts",
            ),
            _results(comparison),
            "",
            _wrapped(verdict(comparison)),
        ]
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _results(comparison: Comparison) -> str:
    return _one_controller(comparison, *comparison.entrants) if len(comparison.entrants) == 1 else _several(comparison)


def _one_controller(comparison: Comparison, name: str) -> str:
    header = ("compression", "best fixed", "tok/s to beat", "tok/s", "x best fixed", "x plain decoding")
    rows = []
    for compression in comparison.grid.compressions:
        gamma = comparison.best_fixed_gammas[compression]
        result = comparison.group(compression)
        ours, fixed = result.row(name), result.row(BEST_FIXED)
        rates = format_rate(fixed.throughput), format_rate(ours.throughput)
        speedups = format_interval(ours.speedup_vs_best_fixed), format_interval(ours.speedup_vs_ar)
        rows.append((compression, str(gamma), *rates, *speedups))
    if len(rows) > 1:
        whole = comparison.group(ALL).row(name)
        speedups = format_interval(whole.geomean_vs_best_fixed), format_interval(whole.geomean_vs_ar)
        rows.append(("geometric mean", "", "", "", *speedups))
    return f"{_shortened(name, 60)}\n{render_table(header, rows)}"


def _several(comparison: Comparison) -> str:
    names = list(comparison.grid.compressions)
    whole = comparison.group(ALL) if len(names) > 1 else comparison.group(names[0])
    ranked = sorted(comparison.entrants, key=lambda name: -whole.row(name).geomean_vs_best_fixed.estimate)
    shown = [_shortened(name) for name in ranked[:MOST_ROWS]]
    header = ("x best fixed gamma", *names, "geometric mean" if len(names) > 1 else "with interval")
    to_beat = [
        f"{comparison.best_fixed_gammas[name]}: {format_rate(comparison.group(name).row(BEST_FIXED).throughput)} tok/s"
        for name in names
    ]
    rows = [("best fixed gamma", *to_beat, "1.000")]
    for label, name in zip(shown, ranked, strict=False):
        cells = [f"{comparison.group(c).row(name).speedup_vs_best_fixed.estimate:.3f}" for c in names]
        rows.append((label, *cells, format_interval(whole.row(name).geomean_vs_best_fixed)))
    if len(ranked) > MOST_ROWS:
        rows.append((f"({len(ranked) - MOST_ROWS} more in results.txt)", *[""] * len(names), ""))
    bound = [f"{comparison.group(c).row(CLAIRVOYANT).speedup_vs_best_fixed.estimate:.3f}" for c in names]
    rows.append((CLAIRVOYANT, *bound, f"{whole.row(CLAIRVOYANT).geomean_vs_best_fixed.estimate:.3f}"))
    return render_table(header, rows)


def _shortened(name: str, longest: int = 30) -> str:
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


def too_few(comparison: Comparison) -> str:
    """What is said in place of a verdict where too few prompts were tested, else ""."""
    number = comparison.setting.test_prompts
    if number >= MIN_PROMPTS:
        return ""
    return (
        f"{number} test prompt{'s' if number > 1 else ''}: too few to tell. With fewer than {MIN_PROMPTS} prompts no "
        "difference can be significant, so there are no intervals and no verdict. Record more prompts."
    )


def verdict(comparison: Comparison) -> str:
    """The main result in a sentence or two."""
    if few := too_few(comparison):
        return few
    result = comparison.group(ALL)
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
