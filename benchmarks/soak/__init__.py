# SPDX-License-Identifier: Apache-2.0
"""Live decoding for as long as one likes, under random policies and cancellations: `python -m benchmarks.soak`."""
