"""Every page of the smoke book in a real browser, wide and narrow, light and dark."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

from lib.book import contents

ROOT = Path(__file__).resolve().parents[2]
PAGES = contents(ROOT)
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
each_page = pytest.mark.parametrize("page_name", PAGES, scope="session")  # so that tests come page by page


@dataclass
class Look:
    """A page as loaded: the live page, what its console said, and what it asked of other hosts."""

    page: Any
    errors: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def look(browser, site):
    """look(page_name, size): the page, loaded once per size and kept open for the tests that follow."""
    contexts = {
        name: browser.new_context(viewport={"width": w, "height": h}) for name, (w, h) in SIZES.items()
    }
    for context in contexts.values():
        context.add_init_script(path=Path(__file__).with_name("checks.js"))
    opened: dict[tuple[str, str], Look] = {}

    def open_(name: str, size: str = "wide") -> Look:
        if (name, size) in opened:
            return opened[name, size]
        # one page at a time: tests come page by page
        for key in [key for key in opened if key[0] != name]:
            opened.pop(key).page.close()
        seen = opened[name, size] = Look(contexts[size].new_page())

        def route(route_, request) -> None:
            if request.url.startswith((site, "data:", "blob:")):
                route_.continue_()
            else:
                seen.external.append(request.url)
                route_.abort()

        seen.page.route("**/*", route)
        seen.page.on(
            "console", lambda message: seen.errors.append(message.text) if message.type == "error" else None
        )
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.goto(f"{site}{name}.html", wait_until="load")
        seen.page.wait_for_load_state("networkidle")
        return seen

    yield open_
    for context in contexts.values():
        context.close()


RAW_MARKUP = re.compile(
    r"\{(?:glue|claim|cite|ref|numref|eq|doc|math|figure|prf:ref|term)(?::\w+)?\}|^:{3,}|^```|\*\*\S"
    r"|\$[^$\s][^$]*\$|\\(?:frac|begin|mathcal|lVert)|<(?:div|img|span|br|table)\b|\[\^\w+\]",
    re.MULTILINE,
)


@each_page
def test_loads_without_errors_or_foreign_requests(look, page_name):
    for size in SIZES:
        seen = look(page_name, size)
        assert not seen.external and not seen.errors


@each_page
def test_no_raw_markup(look, page_name):
    page = look(page_name).page
    found = RAW_MARKUP.search(page.evaluate("checks.prose()"))
    assert not found, found.string[max(0, found.start() - 60) : found.end() + 60]
    assert page.locator(".math .error, .problematic").count() == 0


@each_page
def test_images_are_drawn_and_have_alt_text(look, page_name):
    page = look(page_name).page
    page.evaluate("() => document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
    images = page.evaluate("checks.images()")
    assert not [i for i in images if i["visible"] and not i["drawn"]]
    assert not [i for i in images if not i["alt"]]


@each_page
def test_controls_and_links_have_names(look, page_name):
    assert not look(page_name).page.evaluate("checks.unnamed()")


@each_page
@pytest.mark.parametrize("size", SIZES)
def test_fits_its_window(look, page_name, size):
    page = look(page_name, size).page
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0] + 1, page.evaluate(
        "checks.wide()"
    )
    assert not page.evaluate("checks.wide()")


@each_page
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_stands_out_and_is_kept_as_a_picture(look, theme, page_name, colours):
    folder = ROOT / "_build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        page = look(page_name, size).page
        theme(page, colours)
        page.screenshot(path=str(folder / f"{Path(page_name).name}-{size}-{colours}.png"), full_page=True)
        weak = page.evaluate("checks.contrast()")
        theme(page, "light")
        assert not weak


def test_links_within_the_book_lead_somewhere(book):
    from bs4 import BeautifulSoup

    if book.failures or not (book.html / "index.html").is_file():
        pytest.skip("the book was not built")
    soups = {
        p: BeautifulSoup(p.read_text(), "html.parser")
        for p in book.html.rglob("*.html")
        if "_static" not in p.parts
    }
    anchors = {
        p: {t.get("id") or t.get("name") for t in s.find_all(lambda t: t.get("id") or t.get("name"))}
        for p, s in soups.items()
    }
    broken = []
    for path, soup in soups.items():
        for link in soup.select("article a[href], nav a[href]"):
            target, anchor = urldefrag(urljoin(path.as_uri(), link["href"]))
            if not target.startswith("file:"):
                continue
            there = Path(unquote(target.removeprefix("file://")))
            if not there.exists() or (anchor and there in anchors and unquote(anchor) not in anchors[there]):
                broken.append(f"{path.relative_to(book.html)} -> {link['href']}")
    assert not broken
