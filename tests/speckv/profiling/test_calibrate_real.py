# SPDX-License-Identifier: Apache-2.0
"""Calibration on real weights, at the least that covers everything; how good its times are is not tested here."""

from pathlib import Path

import pytest

from speckv.cost import CostTable
from speckv.models import PairConfig
from speckv.profiling.calibrate import CalibrationPlan, CheckPlan, calibrate
from speckv.profiling.timing import TimingPlan
from speckv.runtime.constant import ConstantGamma


@pytest.mark.model
@pytest.mark.slow
def test_a_real_pair_is_measured_and_checked(weights_dir: Path, tmp_path: Path) -> None:
    path = weights_dir / "smollm2-135m-instruct-q4_1.gguf"
    plan = CalibrationPlan(
        name="smol",
        pair=PairConfig(target=str(path), draft="self", draft_layers=4, dtype="float32", device="cpu"),
        compressions=("fp16",),
        timing=TimingPlan(reference_context=8, far_context=16, widths=(1, 4), repeats=1, warmups=1),
        batches=(1, 2),
        check=CheckPlan(prompts=("Name three rivers.",), gammas=(0, 3), max_new_tokens=6),
    )
    table = calibrate(plan, ConstantGamma(2))
    assert table.cost_ratio("fp16") < 1  # four of thirty layers
    assert table.batches("fp16") == (1, 2)
    assert table.entry("fp16").kernel == table.entry("fp16").draft_kernel == "torch product in float32"
    fit = table.fit["fp16"]
    assert (fit.prompts, fit.runs) == (1, 3)
    assert 0 < fit.tokens <= 15
    table.save(tmp_path / "smol.json")
    assert CostTable.load(tmp_path / "smol.json").checks == table.checks
