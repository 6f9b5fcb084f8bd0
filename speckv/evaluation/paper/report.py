# SPDX-License-Identifier: Apache-2.0
"""Writes the study into a folder."""

from pathlib import Path

from speckv.evaluation.paper.content import study_json
from speckv.evaluation.paper.figure import study_figure
from speckv.evaluation.paper.render import render_study
from speckv.evaluation.paper.results import Study
from speckv.evaluation.report import save_figure
from speckv.files import canonical_json, write_atomically


def save_study(folder: Path, study: Study) -> None:
    """Writes `results.json`, `results.txt` and `speckv_paper.png`."""
    write_atomically(folder / "results.json", canonical_json(study_json(study)))
    write_atomically(folder / "results.txt", render_study(study))
    save_figure(study_figure(study), folder / "speckv_paper.png")
