# SPDX-License-Identifier: Apache-2.0
"""A feature is one entry: a copy of the packages with one more works in replay, in environments and for one request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

ENTRY = """
    _field("lag_squared", 0, 1, "The draft's lag over 16, squared"): _past(
        "place", lambda past, _: (past.draft_lag / LAG_HORIZON) ** 2
    ),
"""

CHECK = """
import numpy as np
from speckv.envs import DraftStoppingEnv, GammaSelectionVectorEnv
from speckv.observation import *
from speckv.observation.schema import ObservationSchema
from speckv.types import StepOutcome

lag, squared = SCHEMA.index("draft_lag"), SCHEMA.index("lag_squared")
assert (SCHEMA.size, STOPPING_SCHEMA.size, squared) == (18, 26, 9)

# Of many requests and of one.
history, memory = History.start(1, 0.5, 0.75), RequestMemory(cost_ratio=0.5, bits_per_weight=4.0, budget=99)
memory.start(0.5, 0.75)
static = StaticContext.of(["nf4"], {"nf4": 0.5}, [99])
plain = StepOutcome(gamma=0, num_drafted=0, num_accepted=0, num_tested=0, num_emitted=1, seconds=1.0,
                    draft_signals=np.zeros((0, 3), np.float32), target_entropy=0.5, target_confidence=0.75)
for _ in range(3):
    observation = observe(history, static)[0]
    assert observation[squared] == observation[lag] ** 2
    np.testing.assert_array_equal(memory.render(), observation)
    history = update_history(history, StepBatch.from_outcome(plain))
    memory.end_step(num_drafted=0, num_accepted=0, num_emitted=1, target_entropy=0.5, target_confidence=0.75)

# In environments.
envs = GammaSelectionVectorEnv(4)
observations, _ = envs.reset(seed=0)
observations, *_ = envs.step(np.zeros(4, np.int64))
assert observations.shape == (4, 18) and (observations[:, squared] == 1 / 256).all()
env = DraftStoppingEnv()
assert env.reset(seed=0)[0].shape == env.step(np.int64(1))[0].shape == (26,)

# What was stored before finds its features, and the new one hides with its group.
former = ObservationSchema(version=1, fields=tuple(f for f in STOPPING_SCHEMA.fields if f.name != "lag_squared"))
assert former.select_from(STOPPING_SCHEMA).tolist() == [k for k in range(26) if k != squared]
assert hidden_columns(["place"])[squared]
"""


def test_a_feature_is_one_entry(tmp_path: Path) -> None:
    for package in ("speckv", "envs"):
        shutil.copytree(
            ROOT / package, tmp_path / package, symlinks=True, ignore=shutil.ignore_patterns("assets", "__pycache__")
        )
    (tmp_path / "speckv" / "assets").symlink_to(ROOT / "speckv" / "assets")
    path = tmp_path / "speckv" / "observation" / "features.py"
    before, marker, after = path.read_text(encoding="utf-8").partition('    _field("draft_confidence_last"')
    assert marker
    path.write_text(f"{before}{ENTRY.lstrip(chr(10))}{marker}{after}", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
