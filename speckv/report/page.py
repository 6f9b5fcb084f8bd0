# SPDX-License-Identifier: Apache-2.0
"""Puts content, styles and script into one HTML file that asks nobody for anything."""

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

ASSETS = Path(__file__).parents[1] / "assets" / "report"
SCRIPTS = ("dom.js", "charts.js", "table.js", "timeline.js", "main.js")
"""In this order: later ones use what earlier ones define."""


def render_page(content: Mapping[str, object]) -> str:
    """Renders the page: the same text for the same content.

    Args:
        content: From `page_content`.
    """
    style = _read("page.css")
    script = "\n".join(_read(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template(_read("page.html")).substitute(
        title=escape(str(content["title"])),
        policy=escape(policy),
        style=style,
        data=embedded_json(content),
        script=script,
    )


def embedded_json(content: Mapping[str, object]) -> str:
    r"""Renders JSON that no text inside can end: whatever opens a tag or a comment is written as an escape.

    >>> embedded_json({"a": "</script><!--"})
    '{"a":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _source_hash(source: str) -> str:
    """How a content security policy names what may run or style."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
