# SPDX-License-Identifier: Apache-2.0
"""One self-contained page that shows an evaluation: `content` collects what it shows, `page` renders it."""
