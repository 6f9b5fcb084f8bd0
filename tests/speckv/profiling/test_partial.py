# SPDX-License-Identifier: Apache-2.0
"""An unfinished calibration is kept, and the same command goes on; the quick form; the time that is told beforehand."""

from dataclasses import replace
from pathlib import Path

import pytest

from speckv.commands.app import compose_checked
from speckv.commands.calibrate import QUICK, overrides
from speckv.cost import CostTable
from speckv.errors import ConfigError
from speckv.models import PairConfig
from speckv.models.pair import ModelPair, load_pair
from speckv.profiling.calibrate import CalibrationPlan, CheckPlan, calibrate, forecast_s
from speckv.profiling.partial import PartialTable
from speckv.profiling.timing import TimingPlan
from speckv.runtime.constant import ConstantGamma
from tests.fakes import save_tiny, tiny_qwen

TIMING = TimingPlan(reference_context=4, far_context=8, widths=(1, 3), repeats=1, warmups=1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> CalibrationPlan:
    folder = tmp_path_factory.mktemp("pair")
    target, draft = (save_tiny(folder / name, tiny_qwen(seed)) for seed, name in enumerate(("target", "draft")))
    pair = PairConfig(target=str(target), draft=str(draft), dtype="float32", device="cpu", chat_template=False)
    return CalibrationPlan(name="here", pair=pair, compressions=("fp16", "nf4"), timing=TIMING)


def loads_as_fp16(loaded: list[str]) -> object:
    """Loads the pair, unquantised under any name: what is measured does not matter here."""

    def load(config: PairConfig) -> ModelPair:
        loaded.append(config.compression)
        pair = load_pair(replace(config, compression="fp16"))
        return replace(pair, target=replace(pair.target, compression=config.compression))

    return load


def test_what_was_measured_is_not_measured_again(plan: CalibrationPlan, tmp_path: Path) -> None:
    kept = PartialTable(tmp_path / "here.json", plan)
    assert kept.load() is None
    loaded: list[str] = []

    def keep_and_stop(table: CostTable) -> None:
        kept.save(table)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(plan, ConstantGamma(2), keep=keep_and_stop, load=loads_as_fp16(loaded))  # type: ignore[arg-type]
    assert (loaded, kept.path.name) == (["fp16"], "here.partial.json")
    begun = kept.load()
    assert begun is not None
    said: list[str] = []
    table = calibrate(plan, ConstantGamma(2), load=loads_as_fp16(loaded), begun=begun, on_progress=said.append)  # type: ignore[arg-type]
    assert loaded == ["fp16", "nf4"]
    assert table.compressions == ("fp16", "nf4")
    assert table.entry("fp16") == begun.entry("fp16")
    assert "fp16: measured before" in said
    kept.delete()
    assert not kept.path.exists()


def test_a_check_that_was_missing_is_made_up_for(plan: CalibrationPlan) -> None:
    checked = replace(plan, compressions=("fp16",), check=CheckPlan(prompts=("abc",), gammas=(1,), max_new_tokens=4))
    unchecked = calibrate(replace(checked, check=None), ConstantGamma(2))
    loaded: list[str] = []
    table = calibrate(checked, ConstantGamma(2), begun=unchecked, load=loads_as_fp16(loaded))  # type: ignore[arg-type]
    assert loaded == ["fp16"]
    assert set(table.fit) == {"fp16"}


def test_other_settings_and_other_machines_are_refused(plan: CalibrationPlan, tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    PartialTable(out, plan).save(calibrate(replace(plan, compressions=("fp16",)), ConstantGamma(2)))
    with pytest.raises(ConfigError, match="hold a calibration with name=there, got here"):
        PartialTable(out, replace(plan, name="there")).load()
    text = PartialTable(out, plan).path.read_text(encoding="utf-8")
    PartialTable(out, plan).path.write_text(text.replace('"processor": "', '"processor": "other '), encoding="utf-8")
    with pytest.raises(ConfigError, match="with processor="):
        PartialTable(out, plan).load()
    PartialTable(out, plan).path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Expected a kept calibration in .*here\.partial\.json"):
        PartialTable(out, plan).load()


def test_more_rounds_take_longer(plan: CalibrationPlan) -> None:
    pair = load_pair(plan.pair)
    short = forecast_s(pair, plan)
    assert short > 0
    assert forecast_s(pair, replace(plan, timing=replace(TIMING, repeats=99))) > 5 * short


def test_the_quick_form_leaves_what_is_given() -> None:
    config = compose_checked("calibrate", overrides(["name=x", "quick=true", "repeats=5"]))
    assert (list(config.widths), config.repeats, config.warmups, config.check) == ([1, 2, 3, 5, 9, 17], 5, 1, False)
    assert overrides(["name=x"]) == ["name=x"]
    assert set(QUICK) <= set(compose_checked("calibrate", ["name=x"]))
