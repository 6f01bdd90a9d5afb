"""Every chapter of the table of contents: the house rules, and its run in the smoke profile."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from lib.book import contents, notebooks, parameters

ROOT = Path(__file__).resolve().parents[2]
NAMES = [Path(page).name for page in contents(ROOT) if page.startswith("notebooks/")]
each_chapter = pytest.mark.parametrize("name", NAMES)


def source(name: str):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def text(name: str) -> str:
    return "\n\n".join(cell.source for cell in source(name).cells if cell.cell_type == "markdown")


def test_every_chapter_is_in_the_table_of_contents():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == set(NAMES)


@each_chapter
def test_committed_without_outputs(name):
    nb = source(name)
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in nb.cells)


@each_chapter
def test_begins_as_the_style_guide_says(name):
    cells = source(name).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert re.search(r"you will be able to", text(name), re.IGNORECASE)


@each_chapter
def test_parameters_are_literals_that_papermill_sees_with_type_and_comment(name):
    (cell,) = [c for c in source(name).cells if "parameters" in tags(c)]
    assert "hide-input" in tags(cell)
    declared = parameters.declared(ROOT / "notebooks" / f"{name}.ipynb")
    lines = [node for node in ast.parse(cell.source).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    assert all(isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) for node in lines)
    assert [node.target.id for node in lines] == list(declared)
    for parameter in declared.values():
        ast.literal_eval(parameter.default)
        assert parameter.help, f"{parameter.name} has no comment"


@each_chapter
def test_code_is_short_enough_to_read(name):
    """At most 15 lines in a cell that is shown, 25 in one that is hidden; no line is cut off on a page."""
    faults = []
    for i, cell in enumerate(source(name).cells):
        if cell.cell_type != "code" or "parameters" in tags(cell):
            continue
        lines = cell.source.splitlines()
        most = 25 if {"hide-input", "remove-input", "remove-cell"} & set(tags(cell)) else 15
        if len(lines) > most:
            faults.append(f"cell {i} has {len(lines)} lines, at most {most} are wanted: {lines[0]!r} ...")
        faults += [f"cell {i}: {len(line)} columns: {line.strip()!r}" for line in lines if len(line) > 80]
    assert not faults, "\n" + "\n".join(faults)


@each_chapter
def test_every_exercise_has_a_solution(name):
    exercises = re.findall(r"^[`:]{3,}\{exercise(?:-start)?\}", text(name), re.MULTILINE)
    solutions = re.findall(r"^[`:]{3,}\{solution(?:-start)?\}", text(name), re.MULTILINE)
    assert exercises and len(exercises) == len(solutions)


@each_chapter
def test_ran(book, name):
    assert name in book.executed, "\n".join(f for f in book.failures if f.startswith(name)) or book.failures


@each_chapter
def test_figures_have_captions_and_alt_text_and_nothing_leaks(book, name):
    if name not in book.executed:
        pytest.skip("it did not run")
    for number_, cell in enumerate(nbformat.read(book.executed[name], as_version=4).cells):
        outputs = cell.get("outputs", [])
        where = f"cell {number_}: {cell.source[:60]!r}"
        if any("image/png" in o.get("data", {}) for o in outputs) and "remove-output" not in tags(cell):
            mystnb = cell.metadata.get("mystnb", {})
            assert mystnb.get("figure", {}).get("caption"), f"no caption, {where}"
            assert mystnb.get("image", {}).get("alt"), f"no alt text, {where}"
        hidden = {"remove-output", "remove-cell", "remove-stderr", "hide-output"} & set(tags(cell))
        leaks = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
        assert hidden or not leaks, f"stderr on the page, {where}: {leaks[0][:200]}"


@each_chapter
def test_the_text_uses_what_the_run_glued_and_every_claim_that_it_made(book, name):
    if name not in book.executed:
        pytest.skip("it did not run")
    glued = notebooks.glued(book.executed[name])
    used = set(re.findall(r"\{glue(?::text|:md|:figure|:any)?\}`([^`:]+)", text(name)))
    assert used <= set(glued), f"used but not glued: {sorted(used - set(glued))}"
    made = set(notebooks.claims(book.executed[name]))
    assert notebooks.claimed(ROOT / "notebooks" / f"{name}.ipynb") == made


def test_no_claim_is_refuted(book):
    assert not book.refuted, "\n" + "\n".join(book.refuted)


@each_chapter
def test_a_chapter_has_a_seed_for_its_claims_to_be_tried_with(name):
    declared = parameters.declared(ROOT / "notebooks" / f"{name}.ipynb")
    assert name == "16_tables" or ((seed := declared.get("seed")) and seed.type == "int")
