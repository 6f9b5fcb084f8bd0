# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that shows an evaluation: figures, curves, and prompts to be stepped through.

Import from the submodules: `content` says what the page holds, `page` renders it.
"""
