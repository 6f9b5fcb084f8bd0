# SPDX-License-Identifier: Apache-2.0
"""Warping, noise and signals against hand-computed values."""

import math

import numpy as np
import pytest
import torch

from speckv.decoding.sampling import SamplingConfig, choose, gumbel_noise, warp_logits
from speckv.errors import ConfigError
from speckv.models.signals import signals

LOGITS = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])


def kept(**settings: float) -> list[int]:
    config = SamplingConfig(mode="gumbel", **settings)  # type: ignore[arg-type]
    return torch.isfinite(warp_logits(LOGITS, config))[0].nonzero()[:, 0].tolist()


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.51) == [0, 1]
    assert kept(top_p=0.8) == [0, 1]
    assert kept(top_k=3, top_p=0.96) == [0, 1, 2]
    assert kept() == [0, 1, 2, 3]


def test_temperature_divides_logits_and_greedy_ignores_it() -> None:
    warped = warp_logits(LOGITS, SamplingConfig(mode="gumbel", temperature=0.5))
    torch.testing.assert_close(warped, 2 * LOGITS)
    torch.testing.assert_close(warp_logits(LOGITS, SamplingConfig(temperature=0.5)), LOGITS)


def test_gumbel_choice_is_an_exact_draw() -> None:
    # 4,000 positions; chi-square with 3 degrees of freedom, false alarm 1e-4.
    config = SamplingConfig(mode="gumbel")
    noise = torch.stack([gumbel_noise(7, i, 4) for i in range(4000)])
    counts = np.bincount(choose(warp_logits(LOGITS, config).expand(4000, 4), config, noise).numpy(), minlength=4)
    expected = 4000 * np.array([0.5, 0.3, 0.15, 0.05])
    assert float(((counts - expected) ** 2 / expected).sum()) < 21.108


def test_noise_is_a_function_of_seed_and_position() -> None:
    assert torch.equal(gumbel_noise(1, 2, 5), gumbel_noise(1, 2, 5))
    assert not torch.equal(gumbel_noise(1, 2, 5), gumbel_noise(1, 3, 5))
    assert torch.isfinite(gumbel_noise(1, 2, 100_000)).all()


def test_signals_of_certainty_and_of_ignorance() -> None:
    found = signals(torch.tensor([[50.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-math.inf, 0.0, 0.0, -math.inf]]))
    expected = np.array([[0.0, 1.0, 1.0], [math.log(4), 0.25, 0.0], [math.log(2), 0.5, 0.0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert torch.isnan(signals(torch.full((1, 3), torch.nan))).all()


@pytest.mark.parametrize("settings", [{"mode": "grumbel"}, {"temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_bad_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        SamplingConfig(**settings)  # type: ignore[arg-type]


def test_an_unknown_mode_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gumbel'"):
        SamplingConfig(mode="grumbel")
