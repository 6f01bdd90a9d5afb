"""One browser and one server for every test that looks at the book."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            item.add_marker(
                pytest.mark.skipif(
                    CHROMIUM is None, reason="no Chromium on this machine: pages are not looked at"
                )
            )


@pytest.fixture(scope="session")
def site(book) -> Iterator[str]:
    """The built book behind a local server."""
    if not (book.html / "index.html").is_file() or book.failures:
        pytest.skip("the book was not built: " + "; ".join(book.failures))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(book.html))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    quiet = [
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    quiet += ["--disable-component-update", "--disable-dev-shm-usage"]
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet + root)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def theme():
    """theme(page, "light" | "dark"): turn the page over and wait until its colours have faded."""

    def turn(page, name: str) -> None:
        page.evaluate(
            "t => { document.documentElement.dataset.theme = t; document.documentElement.dataset.mode = t }",
            name,
        )
        page.wait_for_timeout(350)

    return turn
