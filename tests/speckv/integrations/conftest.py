# SPDX-License-Identifier: Apache-2.0
"""Fixtures of several adapters. Imports are late, as the environments of some adapters have neither torch nor vLLM."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def pair() -> Any:
    """A target and a draft that often agrees with it."""
    from tests.fakes import tiny_qwen

    target = tiny_qwen(0)
    return target, tiny_qwen(1, like=target, noise=0.008)


@pytest.fixture(autouse=True)
def _unset_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLICY", "COMPRESSION", "COMBINE", "PER_REQUEST", "SIGNALS"):
        monkeypatch.delenv(f"SPECKV_{name}", raising=False)
