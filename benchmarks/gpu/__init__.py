# SPDX-License-Identifier: Apache-2.0
"""Everything that is to be measured on the day a GPU is there: `python -m benchmarks.gpu` (docs/gpu.md)."""
