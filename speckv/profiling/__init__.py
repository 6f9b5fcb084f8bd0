# SPDX-License-Identifier: Apache-2.0
"""From models and prompts to traces and cost tables."""
