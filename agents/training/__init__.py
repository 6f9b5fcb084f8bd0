# SPDX-License-Identifier: Apache-2.0
"""A training run from settings to a run folder: data, checkpoints, validation, signals, logs."""
