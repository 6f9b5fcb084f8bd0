# SPDX-License-Identifier: Apache-2.0
"""Learning while real models decode: requests, records of them, bandits and learners, and the comparison at the end."""
