# SPDX-License-Identifier: Apache-2.0
"""Plain-text tables, and how numbers look in them."""

from collections.abc import Sequence

from speckv.evaluation.bootstrap import Interval


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
    """Renders an estimate with its bounds.

    >>> format_interval(Interval(estimate=1.0312, low=0.99, high=1.0649))
    '1.031 [0.990, 1.065]'
    >>> format_interval(Interval(estimate=2.0, low=None, high=None))
    '2.000'
    """
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def format_rate(tokens_per_s: float) -> str:
    """Renders a throughput with three to four digits, and never as an exponent.

    >>> format_rate(5.1834), format_rate(123.456), format_rate(0.12321)
    ('5.183', '123.5', '0.1232')
    """
    digits = 1 if tokens_per_s >= 100 else 2 if tokens_per_s >= 10 else 3 if tokens_per_s >= 1 else 4
    return f"{tokens_per_s:.{digits}f}"
