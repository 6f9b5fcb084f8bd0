# SPDX-License-Identifier: Apache-2.0
"""Writes every table of README and docs that comes from a committed result into its place.

    python -m benchmarks.pages
    python -m benchmarks.pages --check

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. With `--check` nothing is written, and a page whose
table is not what its result gives is an error.
"""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import (
    ablations_page,
    environments_page,
    linear_layers,
    live_page,
    readme_table,
    reliability_page,
    self_timed,
    studies_page,
)
from benchmarks.paper import page as paper_page
from speckv.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGES: Mapping[str, Callable[[], Mapping[str, str]]] = {
    "README.md": lambda: {"headline": readme_table.render_short(), "wall clock": live_page.sentence()},
    "docs/environments.md": environments_page.tables,
    "docs/results/index.md": lambda: {"headline": readme_table.render()},
    "docs/numerics.md": lambda: {"linear layers": linear_layers.render()},
    "docs/results/live.md": lambda: {"live": live_page.render()},
    "docs/results/paper.md": lambda: {"paper": paper_page.render()},
    "docs/results/learning.md": studies_page.tables,
    "docs/results/ablations.md": ablations_page.tables,
    "docs/results/reliability.md": reliability_page.tables,
    "docs/results/self-timed.md": lambda: {
        "self-timed": self_timed.render_constant(),
        "self-timed-distorted": self_timed.render_distorted(),
        "self-timed-changes": self_timed.render_changes(),
    },
}
"""Page -> what its tables are, by name."""
_PLACE = re.compile(r"<!-- table: (?P<name>[^>]+?) -->\n.*?<!-- end -->", re.DOTALL)

logger = logging.getLogger(__name__)


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A page with every table in its place.

    Raises:
        ValueError: if the page lacks a place for a table, or has one that no table is for.
    """
    places = [match["name"] for match in _PLACE.finditer(text)]
    if sorted(places) != sorted(tables):
        raise ValueError(f"Expected a place for each of {sorted(tables)}, got places for {sorted(places)}.")
    return _PLACE.sub(lambda match: f"<!-- table: {match['name']} -->\n{tables[match['name']]}\n<!-- end -->", text)


def stale() -> list[str]:
    """Pages that do not hold what the committed results give."""
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    return [page for page, text in texts.items() if filled(text, PAGES[page]()) != text]


def main() -> int:
    """Writes, or checks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    pages = stale()
    for page in pages:
        if not options.check:
            text = (ROOT / page).read_text(encoding="utf-8")
            write_atomically(ROOT / page, filled(text, PAGES[page]()))
        logger.info("%s: %s", page, "is stale" if options.check else "written")
    return 1 if options.check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
