"""A book of tiny chapters, for the tests of the build."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PARAMETERS = """\
n_seeds: int = 3  # classifiers
rate: float = 0.5
sources: list[int] = [0, 1]
data: str = "digits"
fast: bool = True
plain = 2
"""


def chapter(root: Path, name: str, code: str) -> Path:
    cells = [
        new_markdown_cell(f"# {name}\n\nProse, with {{glue}}`n`."),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters", "hide-input"]}),
        new_code_cell(
            "from myst_nb import glue\nglue('n', n_seeds, display=False)\n"
            "glue('half', n_seeds / 2, display=False)"
        ),
        new_code_cell(code),
    ]
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def make_root(root: Path, codes: dict[str, str]) -> Path:
    (root / "notebooks" / "profiles").mkdir(parents=True)
    (root / "book" / "_static").mkdir(parents=True)
    (root / "book" / "intro.md").write_text("# Intro\n\nHello.\n")
    (root / "book" / "_static" / "own.css").write_text("a {}")
    static = "sphinx: {config: {html_static_path: [book/_static]}}\n"
    (root / "_config.yml").write_text("title: t\nonly_build_toc_files: true\n" + static)
    files = "".join(f"- file: notebooks/{name}\n" for name in codes)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n" + files)
    (root / "notebooks" / "profiles" / "smoke.yml").write_text("02_b: {n_seeds: 4}\n")
    for name, code in codes.items():
        chapter(root, name, code)
    return root
