# SPDX-License-Identifier: Apache-2.0
"""Puts content, styles and script into one self-contained HTML file that loads nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

ASSETS = Path(__file__).parents[1] / "assets" / "report"
SCRIPTS = ("dom.js", "charts.js", "table.js", "timeline.js", "main.js")
"""In loading order: later ones use definitions of earlier ones."""


def render_page(content: Mapping[str, object]) -> str:
    """The page as HTML, from the result of `page_content`; the same text for the same content."""
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
    r"""JSON that is safe inside a script element: characters that open a tag or a comment are escaped.

    >>> embedded_json({"a": "</script><!--"})
    '{"a":"\\u003c/script>\\u003c!--"}'
    """
    text = json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _source_hash(source: str) -> str:
    """The form in which a content security policy lists permitted scripts and styles."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
