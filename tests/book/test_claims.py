"""Claims: what a page says of them, what a build does about them, and how they are tried with other seeds."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from small_book import KERNEL, make_root

from lib import book, cli
from lib.book import BookError, build, notebooks, runner
from lib.prose import claim

MARK = notebooks.REFUTED
SEEDED = "seed: int = 0  # of all there is\nn: int = 3"
FIGURE = {"mystnb": {"figure": {"name": "fig-one", "caption": "A picture {claim}`shorter`."}}}


def write(
    path: Path, prose: str, code: str, *, parameters: str = SEEDED, metadata: dict | None = None
) -> Path:
    """A chapter: its text, its parameters, and a cell of code."""
    cells = [
        new_markdown_cell(prose),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell(code, metadata=metadata or {}),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def as_run(source: Path, out: Path, given: dict | None = None, **values: object) -> Path:
    """What a run of `source` leaves that glues the values; `of` names claims: run__shorter=True."""
    nb = nbformat.read(source, 4)
    prefix = "application/papermill.record/"
    for name, value in values.items():
        scrap = {"name": re.sub(r"^(run|rows)__", r"claim:\1:", name), "mime_prefix": prefix}
        data = {f"{prefix}text/plain": repr(value)}
        nb.cells[2].outputs.append(new_output("display_data", data=data, metadata={"scrapbook": scrap}))
    if given:
        nb.cells.insert(2, new_code_cell("seed = 5", metadata={"tags": [notebooks.INJECTED, "remove-cell"]}))
    nb.metadata["redbook"] = {"key": "k", "parameters": given or {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, out)
    return out


def words(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


# -- making


def test_a_claim_is_true_or_false(monkeypatch):
    found: dict = {}
    myst_nb = pytest.importorskip("myst_nb")
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: found.update({name: value}))
    claim(a=True, b=np.bool_(False), c=torch.tensor(True), d=np.array(False))
    claim.of_rows(e=np.float64(1) > 0)
    kinds = {f"claim:run:{name}": name in "ac" for name in "abcd"}
    assert found == {**kinds, "claim:rows:e": True} and {type(v) for v in found.values()} == {bool}
    for value in (1, 0.0, "True", None, np.array([True]), torch.tensor([True, False]), np.int64(1)):
        for make in (claim, claim.of_rows):
            with pytest.raises(ValueError, match=r"claim shorter = .*: True or False is needed"):
                make(shorter=value)


def test_claims_are_read_back_apart_from_numbers(tmp_path):
    source = write(tmp_path / "01_a.ipynb", "# A", "1")
    out = as_run(source, tmp_path / "out.ipynb", run__up=True, rows__down=False, n=3)
    made = notebooks.claims(out)
    assert {c.name: (c.holds, c.basis) for c in made.values()} == {
        "up": (True, "run"),
        "down": (False, "rows"),
    }
    assert notebooks.glued(out) == {"n": 3}


# -- the page


@pytest.mark.parametrize(
    ("prose", "holds", "fails"),
    [
        ("It is shorter {claim}`x`.", "It is shorter.", f"It is shorter {MARK}."),
        ("It is shorter. {claim}`x` So", "It is shorter. So", None),
        ("It is (shorter {claim}`x`) so", "It is (shorter) so", None),
        ("It is shorter{claim}`x`.", "It is shorter.", f"It is shorter {MARK}."),
        ("It is **shorter {claim}`x`**.", "It is **shorter**.", f"It is **shorter {MARK}**."),
        ("* One.\n* Two {claim}`x`, three {claim}`x`;", "* One.\n* Two, three;", None),
        ("|a|b|\n|-|-|\n| 1 {claim}`x` | 2 |", "|a|b|\n|-|-|\n| 1 | 2 |", None),
        ("{glue:text}`x`, {claim}`x`", "{glue:text}`x`,", None),
    ],
)
def test_a_claim_that_holds_leaves_nothing_and_one_that_does_not_a_mark(tmp_path, prose, holds, fails):
    source = write(tmp_path / "01_a.ipynb", prose, "1")
    for value, want in ((True, holds), (False, fails)):
        merged = notebooks.merge(source, as_run(source, tmp_path / "out.ipynb", run__x=value))
        assert merged.cells[0].source == want or want is None
        assert merged.cells[0].source.count(MARK) == (0 if value else prose.count("{claim}"))
        assert "{claim}" not in merged.cells[0].source


@pytest.mark.parametrize(
    "before",
    [
        "",
        "It is shorter\n",
        "* ",
        "* One.\n  ",
        "1. ",
        "> ",
        "## ",
        "$$\na\n$$\n",
        "```{note}\n",
        "(label)=\n",
    ],
)
def test_a_claim_that_begins_a_line_is_refused(tmp_path, before):
    source = write(tmp_path / "01_a.ipynb", before + "{claim}`x` Two.", "1")
    with pytest.raises(BookError, match=r"01_a: claim 'x' begins a line: it stands behind its sentence"):
        notebooks.merge(source, as_run(source, tmp_path / "out.ipynb", run__x=True))


@pytest.mark.parametrize("values", [(False, True), (True, False), (True, True)])
def test_a_claim_made_several_times_holds_if_it_held_each_time(tmp_path, values):
    source = write(tmp_path / "01_a.ipynb", "Shorter {claim}`x`.", "1")
    made = [notebooks.read(as_run(source, tmp_path / "out.ipynb", run__x=value)) for value in values]
    made[0].cells[-1].outputs += made[1].cells[-1].outputs
    nbformat.write(made[0], tmp_path / "out.ipynb")
    assert notebooks.claims(tmp_path / "out.ipynb")["x"].holds == all(values)


def test_captions_have_claims_too(tmp_path):
    source = write(tmp_path / "01_a.ipynb", "# A", "1", metadata=FIGURE)
    assert notebooks.claimed(source) == {"shorter"}
    for holds, want in ((True, "A picture."), (False, f"A picture {MARK}.")):
        merged = notebooks.merge(source, as_run(source, tmp_path / "out.ipynb", rows__shorter=holds))
        assert merged.cells[2].metadata.mystnb.figure.caption == want
    assert "{claim}" in source.read_text()


def test_code_is_no_prose(tmp_path):
    code = "told = '{claim}`other`'"
    source = write(tmp_path / "01_a.ipynb", "# A", code)
    assert notebooks.claimed(source) == set()
    assert notebooks.merge(source, as_run(source, tmp_path / "out.ipynb")).cells[2].source == code


def test_a_claim_that_the_run_did_not_make_is_refused_and_one_that_no_sentence_names_is_not(tmp_path):
    source = write(tmp_path / "01_a.ipynb", "Shorter {claim}`shorter`, longer {claim}`longer`.", "1")
    out = as_run(source, tmp_path / "out.ipynb", run__shorter=True, rows__ahead=False)
    with pytest.raises(BookError, match=r"01_a: its run made no claim 'longer'; it made ahead, shorter"):
        notebooks.merge(source, out)
    with pytest.raises(BookError, match=r"no claim 'shorter'; it made none"):
        notebooks.merge(source, as_run(source, out))
    as_run(source, out, run__shorter=True, rows__ahead=False)
    write(source, "Less is said: shorter {claim}`shorter`.", "1")
    assert notebooks.merge(source, out).cells[0].source == "Less is said: shorter."


def test_the_page_shows_the_values_that_ran_in_the_cell_of_parameters(tmp_path):
    source = write(tmp_path / "01_a.ipynb", "# A", "1")
    merged = notebooks.merge(source, as_run(source, tmp_path / "out.ipynb", {"seed": 5}))
    assert [cell.source for cell in merged.cells] == ["# A", SEEDED.replace("= 0", "= 5"), "1"]
    assert "seed: int = 0" in source.read_text()


@pytest.mark.long
def test_marks_and_values_are_on_the_page(tmp_path):
    root = make_root(tmp_path, {"01_a": "1"})
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {n: 47}\n")
    code = (
        "from IPython.display import HTML\nfrom lib.prose import claim\nclaim(shorter=False, longer=True)\n"
    )
    code += "HTML('<b>drawn</b>')"
    prose = "# A\n\nIt is longer {claim}`longer`, and shorter {claim}`shorter`."
    source = write(root / "notebooks/01_a.ipynb", prose, code, metadata=FIGURE)
    summary = book.make(root)
    assert list(map(str, summary.refuted)) == ["01_a: claim shorter does not hold in this run"]
    page = (summary.index.parent / "notebooks/01_a.html").read_text()
    assert f"<p>It is longer, and shorter {MARK}.</p>" in page
    assert f'<span class="caption-text">A picture {MARK}.</span>' in page
    assert "n: int = 47" in words(page) and "n = 47" not in words(page)

    write(source, prose + " So {claim}`other`.", code, metadata=FIGURE)
    with pytest.raises(BookError, match="01_a: its run made no claim 'other'"):
        book.make(root)  # and nothing is run for it: prose is in no key
    write(source, "# A\n\nIt is what it is.", code, metadata={})
    again = book.make(root)
    assert again.reused == ("01_a",) and again.pages_built and again.refuted == summary.refuted
    assert MARK not in (again.index.parent / "notebooks/01_a.html").read_text()


# -- the commands


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("down", [True, False])
def test_a_build_lists_what_does_not_hold_and_a_strict_one_fails(tmp_path, monkeypatch, capsys, up, down):
    root = make_root(tmp_path, {"01_a": "1"})
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {}\n")
    source = write(root / "notebooks/01_a.ipynb", "# A", "1")
    monkeypatch.setattr(
        runner.Runner,
        "run",
        lambda self, todo: [
            None for c in todo if not as_run(source, c.executed, run__up=up, rows__down=down, run__on=True)
        ],
    )
    monkeypatch.setattr(build.jupyter_book, "render", lambda *_, **__: True)
    monkeypatch.chdir(root)
    lines = [] if up else ["01_a: claim up does not hold in this run"]
    lines += [] if down else ["01_a: claim down does not hold of its rows"]
    for options, want in (["--strict"], int(bool(lines))), ([], 0):
        assert cli.main(["build", *options]) == want
        out, err = capsys.readouterr()
        assert [line for line in err.splitlines() if "claim" in line] == lines
        assert "pages built" in out


def test_run_prints_its_claims_after_its_numbers(tmp_path, monkeypatch, capsys):
    root = make_root(tmp_path, {"01_a": "1"})
    source = write(root / "notebooks/01_a.ipynb", "# A", "1")
    monkeypatch.setattr(
        book,
        "run_chapter",
        lambda root, source, given, out, **_: (
            as_run(source, out, run__up=True, n=3, rows__down=False) and None
        ),
    )
    assert cli.main(["run", str(source)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "n = 3",
        "claim up: holds",
        "claim down: does not hold",
    ]


def tried(name: str, held: int, runs: int, basis: str = "run") -> book.Tried:
    return book.Tried(chapter="01_a", name=name, basis=basis, held=held, runs=runs)


@pytest.mark.parametrize(
    ("claims", "failures", "status"),
    [
        ([tried("a", 4, 5), tried("b", 5, 5), tried("c", 8, 10), tried("d", 12, 15)], (), 0),
        ([tried("a", 3, 5)], (), 1),
        ([tried("a", 0, 1)], (), 1),
        ([tried("a", 7, 9)], (), 1),
        ([tried("a", 0, 5, "rows")], (), 0),
        (
            [tried("a", 5, 5)],
            (book.Failure(chapter="02_b, seed 300", cell=3, error="KeyError", kept=None),),
            1,
        ),
        ([], (), 0),
    ],
)
def test_claims_ends_with_one_where_a_chapter_failed_or_a_claim_of_runs_is_below_four_of_five(
    monkeypatch, capsys, claims, failures, status
):
    trial = book.Trial(tried=tuple(claims), failures=failures, ran=1, reused=0, seconds=1.0)
    asked = []
    monkeypatch.setattr(book, "try_seeds", lambda root, seeds, **_: asked.append(seeds) or trial)
    assert cli.main(["claims", "--seeds", "3", "--first", "7"]) == status
    out, err = capsys.readouterr()
    assert asked == [[7, 107, 207]]
    assert out.count("fewer than four of five") - 1 == sum(c.held / c.runs < 0.8 for c in claims)
    assert ("failed: 02_b, seed 300: cell [3]: KeyError" in err) == bool(failures)


def test_claims_asks_for_what_its_options_say(monkeypatch):
    trial, asked = book.Trial(tried=(), failures=(), ran=0, reused=0, seconds=0.0), []
    monkeypatch.setattr(book, "try_seeds", lambda root, seeds, **how: asked.append((seeds, how)) or trial)
    cli.main(["claims"])
    cli.main(["claims", "--profile", "laptop", "--only", "02", "--only", "07", "--jobs", "3"])
    assert [seeds for seeds, _ in asked] == [[100, 200, 300, 400, 500]] * 2
    said = [[how["profile"], list(how["only"]), how["jobs"]] for _, how in asked]
    assert said == [["smoke", [], None], ["laptop", ["02", "07"], 3]]


def test_claims_of_rows_are_counted_apart_at_the_end(monkeypatch, capsys):
    claims = (tried("ahead", 5, 5, "rows"), tried("shorter", 2, 5), tried("behind", 0, 5, "rows"))
    trial = book.Trial(tried=claims, failures=(), ran=5, reused=0, seconds=1.0)
    monkeypatch.setattr(book, "try_seeds", lambda *_, **__: trial)
    assert cli.main(["claims"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "chapter  claim    basis  held",
        "01_a     shorter  run    2 of 5  fewer than four of five",
        "01_a     ahead    rows   5 of 5",
        "01_a     behind   rows   0 of 5  fewer than four of five",
        "1 claims of runs, 1 of them held in fewer than four of five",
        "2 claims of rows, which no seed changes, 1 of them hold",
        "5 runs, 0 fresh, in 1 s",
    ]


# -- other seeds


def test_a_seed_is_put_into_the_chapters_that_declare_one_and_checked(tmp_path):
    root = make_root(tmp_path, {"01_a": "1", "02_b": "1"})  # 02_b declares none
    source = write(root / "notebooks/01_a.ipynb", "# A", "1")
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {seed: 9, n: 4}\n")
    plain, seeded = (book.plan(root, seed=seed) for seed in (None, 200))
    assert [c.given for c in plain] == [{"seed": 9, "n": 4}, {}]
    assert [c.given for c in seeded] == [{"seed": 200, "n": 4}, {}]
    assert [c.label for c in seeded] == ["01_a, seed 200", "02_b"]
    assert plain[0].key != seeded[0].key and plain[1].key == seeded[1].key
    assert [str(c.executed.relative_to(root / "_build")) for c in (*plain, *seeded)] == [
        "executed/smoke/01_a.ipynb",
        "executed/smoke/02_b.ipynb",
        "claims/smoke/seed-200/01_a.ipynb",
        "claims/smoke/any-seed/02_b.ipynb",
    ]
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {}\n")
    write(source, "# A", "1", parameters='seed: str = "a"')
    with pytest.raises(BookError, match=r"seed 200: 01_a\.ipynb: parameter 'seed' must be str, got 200"):
        book.try_seeds(root, [200])
    assert not (root / "_build").exists()


def test_a_run_that_failed_is_not_counted_though_an_older_one_is_there(tmp_path, monkeypatch, capsys):
    root = make_root(tmp_path, {"01_a": "1", "02_b": "1"})
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {}\n")
    source = write(root / "notebooks/01_a.ipynb", "# A", "1")

    def failing(self, todo):
        for chapter in todo:
            as_run(source, chapter.executed, run__up=chapter.seed == 100)
        bad = (chapter.label for chapter in todo if chapter.name == "01_a" and chapter.seed != 100)
        return [runner.Failure(chapter=label, cell=1, error="KeyError", kept=None) for label in bad]

    monkeypatch.setattr(runner.Runner, "run", failing)
    found = book.try_seeds(root, [200, 100]).tried  # in reading order
    assert [(t.chapter, t.held, t.runs) for t in found] == [("01_a", 1, 1), ("02_b", 0, 1)]
    summary = book.make(root)
    assert summary.failures and [r.chapter for r in summary.refuted] == ["02_b"]
    monkeypatch.chdir(root)
    assert cli.main(["build"]) == 1
    assert (
        "failed: 01_a: cell [1]: KeyError\n02_b: claim up does not hold in this run"
        in capsys.readouterr().err
    )


@pytest.mark.long
def test_seeds_are_tried_once_each_and_go_on_from_what_is_there(tmp_path):
    codes = {"01_a": "1", "02_b": "from lib.prose import claim\nclaim(two=n_seeds > 5)", "03_c": "3"}
    root = make_root(tmp_path, codes)
    (root / "notebooks/profiles/smoke.yml").write_text("01_a: {n: 4}\n")
    code = "from lib.prose import claim\nclaim(up=seed > 100, four=n == 4)\nclaim.of_rows(ahead=True)"
    write(root / "notebooks/01_a.ipynb", "# A", code)
    write(root / "notebooks/03_c.ipynb", "# C", "from lib.prose import claim\nclaim(c=[True][seed - 100])")
    trial = book.try_seeds(root, [100, 200])
    assert {(t.chapter, t.name, t.basis): (t.held, t.runs) for t in trial.tried} == {
        ("01_a", "up", "run"): (1, 2),
        ("01_a", "four", "run"): (2, 2),
        ("01_a", "ahead", "rows"): (2, 2),
        ("02_b", "two", "run"): (0, 1),
        ("03_c", "c", "run"): (1, 1),
    }
    assert [t.chapter for t in trial.tried] == ["01_a", "01_a", "01_a", "02_b", "03_c"]
    assert [f.chapter for f in trial.failures] == ["03_c, seed 200"] and "IndexError" in trial.failures[
        0
    ].error
    assert (trial.ran, trial.reused) == (4, 0) and not (root / "_build/executed").exists()

    kept = {path: path.stat().st_mtime_ns for path in (root / "_build/claims").rglob("0?_?.ipynb")}
    assert len(kept) == 4
    lost = root / "_build/claims/smoke/seed-200/01_a.ipynb"
    lost.unlink()  # as if it had been interrupted there
    again = book.try_seeds(root, [100, 200], only=["01", "02"])
    assert (again.ran, again.reused) == (1, 2) and again.tried == trial.tried[:4]
    assert {p for p, then in kept.items() if p.stat().st_mtime_ns != then} == {lost}
