# SPDX-License-Identifier: Apache-2.0
"""Fits the cost table `rtx3090-paper` to the clock readings that the SpecKV paper released.

    python benchmarks/fit_paper_costs.py PATH/phase2_experiment_results.csv speckv/assets/costs/rtx3090-paper.json

The file (github.com/Amorfati123/SpecKV, MIT, results/) has 240 runs: compression x gamma in {2, 4, 6, 8} x 20 prompts,
with seconds and decode steps. Seconds a step, pooled, are fitted by least squares as `verify + gamma * draft`, so the
verify pass is flat in its width by assumption, and the first draft pass after a fully accepted draft costs no more
than another. Those runs had no key-value cache and no gamma 0: the times are the paper's, not a serving engine's, and
plain decoding's is an extrapolation.
"""

import argparse
import csv
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np

from speckv.cost import CostEntry, CostTable

logger = logging.getLogger(__name__)
WIDTHS = (1, 17)


def seconds_per_step(path: Path) -> dict[str, dict[int, float]]:
    """Compression -> gamma -> pooled seconds a decode step."""
    seconds: dict[tuple[str, int], float] = defaultdict(float)
    steps: dict[tuple[str, int], int] = defaultdict(int)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            key = row["compression"], int(row["gamma"])
            seconds[key] += float(row["elapsed_sec"])
            steps[key] += int(row["num_steps"])
    table: dict[str, dict[int, float]] = defaultdict(dict)
    for (compression, gamma), total in seconds.items():
        table[compression][gamma] = total / steps[compression, gamma]
    return table


def fit(path: Path) -> CostTable:
    """Fits every compression."""
    entries, residuals = {}, {}
    for compression, by_gamma in seconds_per_step(path).items():
        gammas = np.array(sorted(by_gamma), float)
        times = np.array([by_gamma[int(g)] for g in gammas])
        draft_s, verify_s = np.polyfit(gammas, times, 1)
        residuals[compression] = float(np.abs(np.polyval([draft_s, verify_s], gammas) / times - 1).max())
        entries[compression] = CostEntry(
            compression=compression,
            dtype="float16",
            reference_context=100,
            draft_widths=WIDTHS,
            draft_s=(draft_s, draft_s),
            draft_context_slope_s=0.0,
            verify_widths=WIDTHS,
            verify_s=(verify_s, verify_s),
            verify_context_slope_s=0.0,
        )
    worst = ", ".join(f"{name} {value:.1%}" for name, value in residuals.items())
    return CostTable(
        name="rtx3090-paper",
        kind="fitted",
        machine={"accelerator": "NVIDIA RTX 3090", "pair": "Llama-3.2-3B with Llama-3.2-1B"},
        entries=entries,
        notes=f"Fitted, not measured by us; no key-value cache in those runs. Worst misfit of a gamma's mean: {worst}.",
        source="SpecKV paper, arXiv:2605.02888, released phase2_experiment_results.csv; benchmarks/fit_paper_costs.py",
    )


def main() -> None:
    """Reads two paths from the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    table = fit(arguments.csv)
    table.save(arguments.out)
    for name, entry in table.entries.items():
        logger.info(
            "%s: verify %.1f ms, draft %.1f ms, ratio %.2f",
            name,
            1e3 * entry.verify_s[0],
            1e3 * entry.draft_s[0],
            table.cost_ratio(name),
        )
    logger.info("%s\nwrote %s", table.notes, arguments.out)


if __name__ == "__main__":
    main()
