# SPDX-License-Identifier: Apache-2.0
"""Every measurement that needs a GPU: `python -m benchmarks.gpu` (docs/gpu.md)."""
