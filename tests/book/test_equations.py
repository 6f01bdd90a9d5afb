"""Equations as pictures: all of the book's can be drawn, sit on the line, and say what they are."""

import re
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("ziamath")
from lib.book.equations import EquationError, picture

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
DISPLAY, INLINE = (re.compile(p, re.DOTALL) for p in (r"\$\$(.+?)\$\$", r"(?<!\$)\$([^$]+?)\$(?!\$)"))


def texts():
    for path in sorted((ROOT / "book").glob("*.md")):
        yield path.read_text()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_every_equation_of_the_book_is_drawn():
    prose = [CODE.sub("", text) for text in texts()]
    found = {
        (latex, inline)
        for p, inline in ((DISPLAY, False), (INLINE, True))
        for text in prose
        for latex in p.findall(text)
    }
    drawn = {picture(latex, inline=inline) for latex, inline in found}
    assert len(drawn) == len(found) > 100
    for svg in drawn:
        assert (
            svg.startswith("<svg") and svg.endswith("</svg>") and "<script" not in svg and "http" not in svg
        )
        assert "black" not in svg and 'role="img"' in svg


def depth(latex):
    """How far below the line a picture reaches, and its height, in em."""
    style = re.search(r'style="([^"]*)"', picture(latex, inline=True))[1]
    return [float(re.search(rf"{name}:(-?[\d.]+)em", style)[1]) for name in ("vertical-align", "height")]


def test_a_picture_stands_on_the_line():
    (x, tall), (deep, taller) = depth("x"), depth(r"x_{y_{z}}")
    assert -0.2 < x <= 0 and deep < x and taller > tall
    assert depth("x")[0] == pytest.approx(depth("x + a")[0], abs=0.05)


def test_it_says_its_latex_to_whoever_cannot_see_it():
    assert 'aria-label="w_s &lt; 1"' in picture("w_s <\n 1", inline=True)


@pytest.mark.parametrize("latex", [r"\foo x", r"\frac{1", "a_{", "", "x & y"])
def test_what_cannot_be_drawn_is_named(latex):
    with pytest.raises(EquationError, match="cannot draw") as error:
        picture(latex, inline=True)
    assert repr(latex) in str(error.value)
