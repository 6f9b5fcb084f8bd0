# SPDX-License-Identifier: Apache-2.0
"""Groups of features, and hiding them."""

import numpy as np
import pytest

from speckv.errors import ConfigError
from speckv.observation import GROUPS, SCHEMA, STOPPING_SCHEMA, hidden_columns, hide_from
from speckv.runtime.network import Network, fold


def test_every_feature_but_the_depth_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted([*grouped, "depth"]) == sorted(STOPPING_SCHEMA.names)


def test_groups_and_features_are_found() -> None:
    hidden = hidden_columns(["target", "position"])
    assert [n for n, h in zip(STOPPING_SCHEMA.names, hidden, strict=True) if h] == [
        "target_entropy",
        "target_confidence",
        "position",
    ]
    assert not hidden_columns([]).any()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"got 'acceptence'.*Did you mean 'acceptance'"):
        hidden_columns(["acceptence"])


def test_what_is_hidden_moves_no_output_by_a_bit() -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.random(SCHEMA.size, np.float32), 1 + rng.random(SCHEMA.size, np.float32)
    hidden = hidden_columns(["place", "acceptance"])[: SCHEMA.size]
    weights = [rng.standard_normal((8, SCHEMA.size)).astype(np.float32), rng.standard_normal((3, 8)).astype(np.float32)]
    biases = [rng.standard_normal(8).astype(np.float32), np.zeros(3, np.float32)]
    network = Network(*fold(*hide_from(mean, std, hidden), weights, biases))
    rows = rng.uniform(SCHEMA.low, SCHEMA.high, (50, SCHEMA.size)).astype(np.float32)
    others = np.where(hidden, rng.uniform(SCHEMA.low, SCHEMA.high, rows.shape).astype(np.float32), rows)
    assert np.array_equal(network.batch(rows), network.batch(others))
    seen = np.where(hidden, rows, others + np.float32(0.25))
    assert not np.array_equal(network.batch(rows), network.batch(seen))
