# SPDX-License-Identifier: Apache-2.0
"""Runs: training on recordings or live, validation, checkpoints, records, and evaluation."""
