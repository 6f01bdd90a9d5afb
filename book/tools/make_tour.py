"""The README's sixty-second tour: drives Chromium over the built pages and keeps an animated WebP.

    .venv/bin/python book/tools/make_tour.py [HTML] [OUT]

HTML: the built pages; default: _build/html.
OUT: default: book/_static/tour.webp.
Needs Playwright and a Chromium; no kernel.
"""

from __future__ import annotations

import functools
import http.server
import io
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIZE, WIDTH = (1000, 840), 760  # of the window; of the picture
SECONDS, LIMIT = 60, 1_000_000  # how long it plays; bytes at most
CHAPTER = "notebooks/15_explore.html"
# Of an element: scroll to it, under the bar of the theme, or so that it is in the middle; move a slider.
BELOW_THE_BAR = "e => scrollTo({ top: e.getBoundingClientRect().top + scrollY - 70, behavior: 'instant' })"
IN_THE_MIDDLE = "e => e.scrollIntoView({ block: 'center', behavior: 'instant' })"
MOVE = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that logs nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def frames(page: Any, site: str) -> Iterator[tuple[bytes, float]]:
    """Pictures of the tour, and for how many seconds each is shown (about SECONDS in all)."""

    def shot(seconds: float) -> tuple[bytes, float]:
        return page.screenshot(type="png"), seconds

    def at(title: str) -> Any:
        group = page.get_by_role("group", name=title, exact=False)
        group.evaluate(BELOW_THE_BAR)
        page.wait_for_timeout(200)
        return group

    page.goto(f"{site}/book/intro.html", wait_until="networkidle")
    page.wait_for_timeout(1000)  # until the theme has settled on its colours
    yield shot(4)
    page.goto(f"{site}/{CHAPTER}", wait_until="load")
    page.locator(".rb").nth(3).wait_for(timeout=180_000)
    yield shot(2.5)
    page.locator("#fig-explore-temperatures").evaluate(IN_THE_MIDDLE)
    page.wait_for_timeout(300)
    yield shot(3.5)

    group = at("L-RED under")
    for schedule, step in ((0, 5), (1, 5), (2, 9)):  # the paper's, T = 0, T = inf
        group.get_by_role("combobox", name="Temperature schedule").select_option(index=schedule)
        bar = group.get_by_role("slider", name="Iteration")
        last = int(bar.get_attribute("max"))
        for i in [*range(0, last, max(1, last // step)), last]:
            bar.evaluate(MOVE, i)
            yield shot(2.2 if i == last else 0.9)
    group.locator(".rb-table").evaluate(IN_THE_MIDDLE)
    yield shot(3)

    group = at("The weights of Eq.")
    heat = group.get_by_role("slider", name="Temperature T")
    for x in (200, 120, 80, 50, 20, 0):
        heat.evaluate(MOVE, x)
        yield shot(0.8)

    group = at("The Gamma fit")
    group.get_by_role("combobox", name="Start from").select_option(index=1)
    yield shot(1.5)
    values = [float(d.get_attribute("aria-valuenow")) for d in group.get_by_role("slider").all()]
    dot = group.get_by_role("slider").nth(values.index(max(values)))
    for _ in range(5):
        dot.press("PageUp")
        yield shot(0.9)

    group = at("How strong")
    strength = group.get_by_role("slider", name="Amplitude")
    for amplitude in range(int(strength.get_attribute("max")) + 1):
        strength.evaluate(MOVE, amplitude)
        yield shot(1.2)
    for title in ("Neural Cleanse", "B3D", "Pruning"):
        if not page.get_by_role("group", name=title, exact=False).count():
            continue
        bar = at(title).locator("input[type=range]")
        last = int(bar.get_attribute("max"))
        for i in [*range(0, last, max(1, last // 4)), last]:
            bar.evaluate(MOVE, i)
            yield shot(0.9)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(400)
    yield shot(2)


def write(pictures: list[tuple[bytes, float]], out: Path) -> int:
    """Animated WebP of at most LIMIT bytes, made smaller until it fits, lasting SECONDS; its size."""
    stretch = SECONDS / sum(seconds for _, seconds in pictures)
    durations = [round(1000 * stretch * seconds) for _, seconds in pictures]
    for width in (WIDTH, 700, 640, 560, 480):
        height = round(width * SIZE[1] / SIZE[0])
        whole = (Image.open(io.BytesIO(p)).convert("RGB") for p, _ in pictures)
        first, *rest = (image.resize((width, height), Image.Resampling.LANCZOS) for image in whole)
        buffer = io.BytesIO()
        film = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
        first.save(buffer, "WEBP", **film, quality=45, method=4, minimize_size=False)
        if buffer.tell() <= LIMIT:
            out.write_bytes(buffer.getvalue())
            return buffer.tell()
    size = f"{buffer.tell():,} bytes even at {width} pixels"
    raise SystemExit(f"the tour has {size}: at most {LIMIT:,} are wanted")


def main(html: Path, out: Path) -> None:
    """Serve the pages in `html`, drive a browser over them, and write `out`."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or not (html / CHAPTER).is_file():
        needed = f"needs Chromium (found: {chromium}) and built pages in {html}"
        raise SystemExit(f"{needed}: run `make book` first")
    handler = functools.partial(Quiet, directory=str(html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as p:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = p.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(120_000)
        pictures = list(frames(page, f"http://127.0.0.1:{server.server_port}"))
        browser.close()
    server.shutdown()
    size = write(pictures, out)
    print(f"{out}: {len(pictures)} pictures, {SECONDS} s, {size:,} bytes")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:3]]
    default = [ROOT / "_build/html", ROOT / "book/_static/tour.webp"]
    main(*given, *default[len(given) :])
