"""Staging and pages: chapters with their outputs beside the prose, then Jupyter Book over both.

Nothing is executed here. Files are staged only where their bytes differ, so Sphinx reads again what changed
and no more; when nothing changed at all, it does not run. It works in _build/pages, and its pages take the place of
those in _build/html when they are complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import files
from . import notebooks
from .notebooks import BookError
from .runner import PLACE, Chapter

EQUATIONS = Path(__file__).with_name("equations.py")
STAMP = ".made-of"  # among the pages: the digest of what they were made of
# Folders under book/ that are no part of the pages; nor is one whose name begins with a dot.
APART = ("__pycache__", "node_modules", "tools")


def index(output: Path) -> Path:
    """The first page of what is built in `output`."""
    return output / "_build" / "html" / "index.html"


def render(root: Path, run: Sequence[Chapter], *, output: Path) -> bool:
    """Build output/_build/html; False where it was up to date.

    run: the chapters, executed.
    Raises BookError, with the warnings, when Jupyter Book gives any.
    """
    output = output.absolute()
    stage = output / "_build" / "stage"
    wanted = dict(_files(root, run))
    _write(stage, wanted)
    made_by = f"{version('jupyter-book')} {version('ziamath')}".encode() + EQUATIONS.read_bytes()
    digest = hashlib.sha256(made_by)
    for name in sorted(wanted):
        digest.update(name.encode() + b"\0" + hashlib.sha256(wanted[name]).digest())
    html = index(output).parent
    files.sweep(html)
    if (html / STAMP).exists() and (html / STAMP).read_text() == digest.hexdigest():
        return False
    made = _sphinx(stage, output / "_build")
    _without_thebe(made)
    _with_icons(made)
    (made / STAMP).write_text(digest.hexdigest())
    with files.written(html) as partial:
        os.replace(made, partial)
    return True


def _files(root: Path, run: Sequence[Chapter]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files to stage."""
    import nbformat

    yield "_toc.yml", (root / "_toc.yml").read_bytes()
    yield "_config.yml", _config(root)
    for path in sorted((root / "book").rglob("*")):
        name = path.relative_to(root)
        apart = any(part.startswith(".") or part in APART for part in name.parts)
        if path.is_file() and not apart:
            yield name.as_posix(), path.read_bytes()
    for chapter in run:
        book = notebooks.merge(chapter.source, chapter.executed)
        yield f"notebooks/{chapter.name}.ipynb", nbformat.writes(book).encode()


def _config(root: Path) -> bytes:
    """The book's configuration, with execution off, and with equations and explorers that need no other site."""
    import yaml

    text = (root / "_config.yml").read_bytes()
    config: dict[str, Any] = yaml.safe_load(text) or {}
    config.setdefault("execute", {})["execute_notebooks"] = "off"
    sphinx = config.setdefault("sphinx", {})
    sphinx["extra_extensions"] = [*sphinx.get("extra_extensions", []), f"{__package__}.equations"]
    sphinx.setdefault("config", {})["html_math_renderer"] = "pictures"
    return yaml.safe_dump(config, sort_keys=False).encode()


def _write(stage: Path, wanted: dict[str, bytes]) -> None:
    """Bring the folder `stage` to what is wanted, touching no file whose bytes are the same."""
    for name, content in wanted.items():
        path = stage / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for path in [p for p in stage.rglob("*") if p.is_file()]:
        if path.relative_to(stage).as_posix() not in wanted:
            path.unlink()


def _sphinx(stage: Path, build: Path) -> Path:
    """Run Jupyter Book over what is staged; where its pages are. Any warning is an error."""
    log, work = build / "pages.log", build / "pages"
    made = index(work).parent
    shutil.rmtree(made, ignore_errors=True)  # what it read is kept, beside these
    program = [sys.executable, "-m", f"{__package__}.child"]
    # --all: Sphinx alone would copy no style sheet, and warn of no page, that it has seen before
    options = ["--path-output", str(work), "--all", "--warningiserror", "--keep-going"]
    with subprocess.Popen(
        [*program, "build", str(stage), *options],
        text=True,
        stdin=subprocess.PIPE,  # never written to: it ends with us
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=PLACE,
    ) as child:
        assert child.stdout
        said = child.stdout.read()
    log.write_text(said)
    if child.returncode:
        lines = said.splitlines()
        faults = [line for line in lines if re.search("WARNING|ERROR|Error", line)] or lines[-20:]
        raise BookError("\n  ".join(["Jupyter Book refused the pages:", *faults[:20], f"all of it: {log}"]))
    return made


def _without_thebe(html: Path) -> None:
    """Drop the scripts of sphinx-thebe: Jupyter Book adds them though it is off.

    It adds them twice, which is an error in the page's console.
    """
    script = re.compile(r"[ \t]*<script[^>]*(?:sphinx-thebe\.js[^>]*>|>const THEBE_JS_URL)[^<]*</script>\n?")
    for page in html.rglob("*.html"):
        text = page.read_text()
        if "THEBE_JS_URL" in text:
            page.write_text(script.sub("", text))


_ICON = re.compile(r'<(?P<tag>i|span) class="(?P<classes>[^"]*\bfa-[^"]+)"(?P<rest>[^>]*)></(?P=tag)>')
_NO_SHAPES = {"fa-solid", "fa-regular", "fa-brands", "fa-lg"}


def _with_icons(html: Path) -> None:
    """Put the theme's icons into the pages, a dozen paths, in place of the 1.5 MB script that would draw them there.

    They are Font Awesome's, and come from that script, whose licence stays beside it.
    """
    source = html / "_static" / "scripts" / "fontawesome.js"
    if not source.exists():
        return
    script, known = source.read_text(), dict[str, str]()

    def svg(found: re.Match[str]) -> str:
        classes, rest = found["classes"].split(), found["rest"]
        shapes = [c.removeprefix("fa-") for c in classes if c.startswith("fa-") and c not in _NO_SHAPES]
        name = shapes[0] if shapes else ""
        if name not in known:
            shape = re.search(rf'[,{{]"?{name}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]+","([^"]+)"\]', script)
            if not shape:
                return found[0]
            width, height, path = shape.groups()
            known[name] = f'viewBox="0 0 {width} {height}"><path fill="currentColor" d="{path}"></path></svg>'
        return f'<svg class="svg-inline--fa {" ".join(classes)}" aria-hidden="true"{rest} {known[name]}'

    for page in html.rglob("*.html"):
        text = re.sub(
            r"[ \t]*<(?:script|link)[^>]*fontawesome\.js[^>]*>(?:</script>)?\n?", "", page.read_text()
        )
        page.write_text(_ICON.sub(svg, text))
    for path in (source, source.with_name("fontawesome.js.map")):
        path.unlink(missing_ok=True)
