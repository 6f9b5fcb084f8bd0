# SPDX-License-Identifier: Apache-2.0
"""Published rules that choose how far to speculate, one file each, with the defaults of their sources."""
