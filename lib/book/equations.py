"""Equations as pictures, drawn when the pages are made: a browser needs no script and no font for them.

An extension of Sphinx, the `math_renderer` "pictures". Those who cannot see a picture are told its LaTeX.
"""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

SIZE = 16.0  # of the letters in a picture's own units
UNITS = SIZE / 1.08  # of these in an em: letters of a book face are a little smaller than the text's
# what the drawing library takes in another form only
OTHERWISE = (
    (re.compile(r"\\operatorname\*?\s*\{"), r"\\mathrm{"),
    (re.compile(r"\\mathbb\s*\{?\s*1\s*\}?"), r"\\mathbf{1}"),
    (re.compile(r"\\(mathbb|mathcal|mathrm)\s+(\w)"), r"\\\1{\2}"),
    (re.compile(r"(^|[=<>([,{]|\\(?:approx|propto|sim|le|ge|in)\b)\s*-"), r"\1{-}"),  # a sign, no difference
)


class EquationError(ValueError):
    """An equation that cannot be drawn."""


@cache
def picture(latex: str, *, inline: bool) -> str:
    """An equation as an SVG element, in the colour of the text, its baseline on that of the line.

    Raises EquationError, with the equation, where it cannot be drawn.
    """
    import ziamath
    from latex2mathml.converter import convert

    ziamath.config.svg2, ziamath.config.precision = False, 2
    plain = latex.strip()
    for pattern, form in OTHERWISE:
        plain = pattern.sub(form, plain)
    try:
        drawn = ziamath.Latex(plain, size=SIZE, color="currentColor", inline=inline).svg()
    except Exception as error:  # whatever the library stumbles over
        raise EquationError(f"cannot draw {latex.strip()!r}: {error}") from error
    if unknown := re.search(r">(\\[a-zA-Z]+)<", convert(plain)):  # it would be drawn as these letters
        raise EquationError(f"cannot draw {latex.strip()!r}: no command {unknown[1]} is known")
    box = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', drawn)
    assert box
    _, top, width, height = map(float, box.groups())
    style = f"width:{width / UNITS:.3f}em;height:{height / UNITS:.3f}em"
    if inline:
        style += f";vertical-align:{-(height + top) / UNITS:.3f}em"
    told = html.escape(" ".join(latex.split()), quote=True)
    head = f'<svg class="equation" role="img" aria-label="{told}" style="{style}" viewBox="{" ".join(box.groups())}">'
    return head + drawn[drawn.index(">") + 1 :]


def _inline(page: Any, node: Any) -> None:
    from docutils import nodes

    page.body.append(picture(node.astext(), inline=True))
    raise nodes.SkipNode


def _display(page: Any, node: Any) -> None:
    from docutils import nodes
    from sphinx.util.math import get_node_equation_number

    page.body.append(page.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        page.body.append(f'<span class="eqno">({get_node_equation_number(page, node)})')
        page.add_permalink_ref(node, "Link to this equation")
        page.body.append("</span>")
    page.body.append(picture(node.astext(), inline=False) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("pictures", (_inline, None), (_display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
