# SPDX-License-Identifier: Apache-2.0
"""Names that users chose, made fit for a figure."""

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font


def figure_text(text: str) -> str:
    r"""Returns a text that Matplotlib draws as it is, without a warning.

    Characters that the font lacks and control characters become escapes, dollar signs do not begin a formula, and a
    leading underscore does not hide a line from the legend.

    >>> figure_text("p7 (code)"), figure_text("提示1"), figure_text("a\n$b$"), figure_text("_base")
    ('p7 (code)', '\\u63d0\\u793a1', 'a\\n\\$b\\$', ' _base')
    """
    drawn = "".join(_drawn(character) for character in text)
    return f" {drawn}" if drawn.startswith("_") else drawn


@cache
def _drawn(character: str) -> str:
    if character == "$":
        return r"\$"
    font = get_font(findfont(FontProperties()))
    if character.isprintable() and font.get_char_index(ord(character)):
        return character
    return character.encode("unicode_escape").decode()
