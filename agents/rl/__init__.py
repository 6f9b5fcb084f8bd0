# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learners of Stable-Baselines3 and its contrib package: settings, construction, state, export."""
