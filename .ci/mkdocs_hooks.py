# SPDX-License-Identifier: Apache-2.0
"""Adds pages and pictures from outside docs/ to the site, and points links at them."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File of the checkout -> page of the site."""
RESULTS = "benchmarks/results"
_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the pages, and the pictures of results."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for picture in sorted((ROOT / RESULTS).rglob("*.png")):
        place = f"figures/{picture.relative_to(ROOT / RESULTS).as_posix()}"
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):  # noqa: ARG001 - called by name
    """Rewrites links from the checkout's layout to the site's; links to source files become plain text."""
    origin = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(match):
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target:
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if not (ROOT / whole).exists():
            return match[0]  # the build reports it
        if whole in PAGES:
            found = PAGES[whole]
        elif whole.startswith("docs/"):
            found = whole.removeprefix("docs/")
        elif whole.startswith(RESULTS) and whole.endswith(".png"):
            found = f"figures/{whole.removeprefix(RESULTS + '/')}"
        else:
            return f"{match['text'].strip('![]')} (`{whole}`)"
        return f"{match['text']}({posixpath.relpath(found, here or '.')}{anchor})"

    return _LINK.sub(rewritten, markdown)
