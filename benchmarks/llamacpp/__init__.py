# SPDX-License-Identifier: Apache-2.0
"""What llama-cpp-python takes on a machine: its cost table. Needs no torch."""
