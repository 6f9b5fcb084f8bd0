# SPDX-License-Identifier: Apache-2.0
"""Published rules, one file each; tuning tries every combination of the values in a module's `GRID`."""
