# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that shows an evaluation: figures, curves, and prompts to step through.

Import from the submodules: `content` collects what the page shows, `page` renders it.
"""
