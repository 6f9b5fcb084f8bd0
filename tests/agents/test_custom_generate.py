# SPDX-License-Identifier: Apache-2.0
"""Every agent in transformers' `custom_generate` folder: it decides where neither SpecKV nor agents are installed."""

from pathlib import Path
from typing import Any

import pytest

from speckv.agents.bandits.base import Bandit
from speckv.agents.registry import AGENTS
from speckv.agents.self_timed import SelfTimed
from speckv.export.hf import write_custom_generate
from speckv.runtime import load
from tests.agents.test_exported import made
from tests.fakes_custom_generate import Pair, call

NAMES = [name for name, agent in AGENTS.items() if not agent.in_environment]


@pytest.mark.slow
def test_every_agent_runs_without_speckv_as_it_does_with_it(tmp_path: Path) -> None:
    """Those that learn from the clock draft what they will; all others draft what `control` lets them draft here."""
    pair = Pair.save(tmp_path / "pair")
    for name in NAMES:
        write_custom_generate(made(name, tmp_path / "runs" / name), tmp_path / name)
    short: dict[str, Any] = {"max_new_tokens": 12}
    calls = [call(1, assisted=False, **short), *(call(1, tmp_path / name, **short) for name in NAMES)]
    answers = pair.without_speckv(calls)
    plain, *others = answers
    for name, answer in zip(NAMES, others, strict=True):
        assert answer.get("text") == plain["text"], (name, answer)
        policy = load(tmp_path / name)
        if not isinstance(policy.controller, Bandit | SelfTimed):
            assert answer == pair.under_control(policy, call(1, **short)), name


def test_a_folder_holds_its_own_agent_and_no_other(tmp_path: Path) -> None:
    write_custom_generate(made("svip", tmp_path / "run"), tmp_path / "folder")
    held = {path.stem for path in (tmp_path / "folder" / "custom_generate").glob("speckv_agents_*.py")}
    assert held == {f"speckv_agents_{name}" for name in ("building", "storing", "rules_base", "rules_svip")}
