"""What a chapter declares, and what is refused before anything runs: parameters, profiles, notebooks, places to write to."""

import ast
import json
import os

import nbformat
import pytest
from small_book import make_root

from lib import book, cli
from lib.book import BookError, freshness, notebooks, parameters
from lib.settings import typed

ODD = """\
%matplotlib inline
from typing import Optional
equal: str = "a=b"  # with a sign
maybe: float | None = None  # or nothing
other: Optional[int] = 3
both: int | list[int] = 1
bare = [0.1, 1]
mixed = [1, "a"]
pair: tuple[float, ...] = (0.5, 1)
lines: list[int] = [
    1,
    2,
]  # over three lines
big = 500_000
nothing = None
thing: Figure = None
one = two = "x"
no_value: int
a, b = 1, 2
counts.n = 3
"""


@pytest.fixture
def small(tmp_path):
    return make_root(tmp_path, {"01_a": "1", "02_b": "2"})


@pytest.fixture
def chapter(small):
    return small / "notebooks" / "01_a.ipynb"


@pytest.fixture
def odd(chapter):
    nb = nbformat.read(chapter, 4)
    nb.cells[1].source = ODD
    nbformat.write(nb, chapter)
    return chapter


# -- what a chapter declares, and what it is given


@pytest.mark.parametrize(
    ("name", "given", "want"),
    [
        ("n_seeds", "7", 7),
        ("n_seeds", "010", 10),  # to YAML it is 8
        ("n_seeds", 7, 7),
        ("rate", "0.25", 0.25),
        ("rate", 1, 1.0),
        ("rate", "1e-3", 1e-3),
        ("sources", "0, 6,8", [0, 6, 8]),
        ("sources", "[4]", [4]),
        ("sources", "(4)", [4]),
        ("sources", [1], [1]),
        ("data", "mnist", "mnist"),
        ("data", "1", "1"),
        ("fast", "false", False),
        ("fast", True, True),
        ("plain", "5", 5),
    ],
)
def test_parameter_is_read_as_declared(small, name, given, want):
    value = parameters.check(small / "notebooks/01_a.ipynb", {name: given})[name]
    assert value == want and type(value) is type(want)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("n_seeds", "abc"),
        ("n_seeds", "3.5"),
        ("n_seeds", 3.5),
        ("n_seeds", True),
        ("n_seeds", None),
        ("n_seeds", "1:30"),  # to YAML it is 90
        ("rate", "x"),
        ("sources", "a,b"),
        ("sources", 3),
        ("sources", [0.5]),
        ("sources", "[1"),
        ("sources", "1,,2"),
        ("data", 3),
        ("fast", "maybe"),
        ("fast", 1),
        ("plain", "x"),
        ("n_seedz", "3"),
    ],
)
def test_bad_parameter_is_refused_by_name(small, name, given):
    with pytest.raises(BookError) as error:
        parameters.check(small / "notebooks/01_a.ipynb", {name: given})
    assert all(
        word in str(error.value) for word in ("01_a.ipynb", f"'{name}'", "n_seeds: int = 3", "fast: bool")
    )


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("02_b: {n_seedz: 4}", ("smoke.yml", "02_b.ipynb", "'n_seedz'", "n_seeds: int")),
        ("02_b: {n_seeds: many}", ("smoke.yml", "02_b.ipynb", "'n_seeds'", "must be int")),
        ("09_x: {n_seeds: 4}", ("smoke.yml", "09_x", "01_a, 02_b")),
        ("02_b: 4", ("smoke.yml", "must map")),
        ("02_b: {n: [", ("smoke.yml", "not YAML")),
    ],
)
def test_bad_profile_is_refused_before_anything_runs(small, profile, words):
    (small / "notebooks/profiles/smoke.yml").write_text(profile)
    with pytest.raises(BookError) as error:
        book.make(small)
    assert all(word in str(error.value) for word in words)
    assert not (small / "_build").exists()


def test_unknown_profile_and_chapter_are_named(small):
    with pytest.raises(BookError, match=r"no profile 'papr': allowed are smoke"):
        book.plan(small, "papr")
    with pytest.raises(BookError, match="no chapter '07'"):
        book.plan(small, only=["07"])
    (small / "notebooks/01_a.ipynb").unlink()
    with pytest.raises(BookError, match=r"_toc\.yml names notebooks/01_a"):
        book.plan(small)


@pytest.mark.parametrize(
    ("annotation", "given", "want"),
    [
        ("list[list[int]]", "[[1, 2], [3]]", [[1, 2], [3]]),
        ("dict[str, float]", "{a: 1}", {"a": 1.0}),
        ("Figure", "x", "x"),  # a name that tells nothing
        ("list[os.system]", "[ls]", ["ls"]),
    ],
)
def test_an_annotation_is_read_and_never_run(annotation, given, want):
    assert typed(given, parameters._type_named(annotation)) == want


def test_what_a_chapter_declares_is_read_and_not_run(odd):
    said = {name: (p.type, p.default, p.help) for name, p in parameters.declared(odd).items()}
    assert said == {
        "equal": ("str", '"a=b"', "with a sign"),
        "maybe": ("float | None", "None", "or nothing"),
        "other": ("Optional[int]", "3", ""),
        "both": ("int | list[int]", "1", ""),
        "bare": ("list[float]", "[0.1, 1]", ""),
        "mixed": ("list", '[1, "a"]', ""),
        "pair": ("tuple[float, ...]", "(0.5, 1)", ""),
        "lines": ("list[int]", "[\n    1,\n    2,\n]", "over three lines"),
        "big": ("int", "500_000", ""),
        "nothing": ("Any", "None", ""),
        "thing": ("Figure", "None", ""),
        "one": ("str", '"x"', ""),
        "two": ("str", '"x"', ""),
    }


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("equal", "x=y=z", "x=y=z"),
        ("equal", "None", "None"),
        ("maybe", "None", None),
        ("maybe", "null", None),
        ("maybe", "1e-3", 1e-3),
        ("maybe", "inf", float("inf")),
        ("other", "None", None),
        ("other", "4", 4),
        ("both", "3", 3),
        ("both", "3, 4", [3, 4]),
        ("bare", "1e-3,1e-2", [1e-3, 1e-2]),
        ("bare", "1e-3,", [1e-3]),
        ("mixed", "1,b", [1, "b"]),
        ("pair", "0.9, 1", (0.9, 1.0)),
        ("big", "1_000", 1000),
        ("nothing", "1, 2", "1, 2"),
        ("nothing", "[1, 2]", [1, 2]),
        ("nothing", "None", None),
        ("nothing", "# no comment", "# no comment"),
        ("nothing", "&a [*a]", "&a [*a]"),
        ("thing", "x", "x"),
    ],
)
def test_a_text_is_read_as_the_parameter_is_declared(odd, name, text, want):
    found = parameters.check(odd, {name: text})[name]
    assert found == want and repr(found) == repr(want)


# -- a chapter's parameters with the values that ran


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("equal", "it's", """equal: str = "it's"  # with a sign"""),
        ("maybe", 1e-3, "maybe: float | None = 0.001  # or nothing"),
        ("maybe", None, "maybe: float | None = None  # or nothing"),
        ("other", None, "other: Optional[int] = None"),
        ("both", [3, 4], "both: int | list[int] = [3, 4]"),
        ("pair", (0.9, 1.0), "pair: tuple[float, ...] = (0.9, 1.0)"),
        ("lines", [7], "lines: list[int] = [7]  # over three lines"),
        ("lines", [1, 2], "]  # over three lines"),
        ("big", 7, "big = 7"),
        ("big", 500_000, "big = 500_000"),
        ("bare", [0.1, 1.0], "bare = [0.1, 1.0]"),  # it is another type
        ("nothing", {"a": "\n"}, "nothing = {'a': '\\n'}"),
    ],
)
def test_a_value_takes_the_place_of_its_default_and_of_nothing_else(odd, name, value, line):
    before = parameters.declared(odd)
    nb = nbformat.read(odd, 4)
    nb.cells[1].source = parameters.put(ODD, {name: value})
    nbformat.write(nb, odd)
    after = parameters.declared(odd)
    put = ast.literal_eval(after[name].default)
    assert put == value and type(put) is type(value) and line in nb.cells[1].source.splitlines()
    assert after[name].help == before[name].help
    assert {n: p for n, p in after.items() if n != name} == {n: p for n, p in before.items() if n != name}
    others = [text for text in ODD.splitlines() if not text.startswith((name, " ", "]"))]
    assert [
        text for text in nb.cells[1].source.splitlines() if not text.startswith((name, " ", "]"))
    ] == others


def test_all_values_are_put_at_once_and_what_is_not_given_stays():
    code = 'a: str = "…"  # é, of "two" bytes\nb: list[int] = [\n    1,  # one\n]  # …\nc: int = 3'
    assert parameters.put(code, {}) == code
    new = parameters.put(code, {"a": "ü", "b": [2, 3], "c": 4})
    assert new == "a: str = 'ü'  # é, of \"two\" bytes\nb: list[int] = [2, 3]  # …\nc: int = 4"
    assert (
        parameters.put("x: float = 1.0  # or none", {"x": float("inf")})
        == 'x: float = float("inf")  # or none'
    )
    for code, value in (
        ("x: list[float] = []", [1.0, float("inf")]),
        ("x: dict = {}", {"a": [float("-inf")]}),
    ):
        ran: dict = {}
        exec(parameters.put(code, {"x": value}), ran)
        assert ran["x"] == value


def test_a_value_of_one_of_two_names_leaves_the_other_its_own():
    for code in ("one = two = 1  # both", "one = two = (\n    1\n)"):
        ran: dict = {}
        exec(parameters.put(code, {"two": 5}), ran)
        assert (ran["one"], ran["two"]) == (1, 5)


LOOP: list = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("equal", "\udcff"),
        ("nothing", "\udcff"),
        ("nothing", {1, 2}),
        ("nothing", b"bytes"),
        ("nothing", LOOP),
        ("nothing", {(1, 2): 3}),
        ("mixed", "[" * 100_000),
        ("mixed", "[&a x, *a]"),
        ("mixed", "{a: 1, a: 2}"),
        ("maybe", "x"),
        ("maybe", "9" * 401),
        ("maybe", "1e999"),
        ("maybe", "nan"),
        ("bare", "x"),
        ("bare", "None"),
        ("other", "1.5"),
        ("big", "1e3"),
        ("big", "9" * 5000),
        ("big", "0x10"),
        ("pair", "x, y"),
        ("lines", "x" * 10_000),
        ("a", "1"),
        ("no_value", "1"),
        ("counts.n", "1"),
        ("Optional", "1"),
        ("k" * 5000, "1"),
    ],
    ids=str,
)
def test_what_fits_no_declaration_is_refused_in_a_message_of_bounded_length(odd, name, given):
    with pytest.raises(BookError) as error:
        parameters.check(odd, {name: given})
    said = str(error.value)
    assert said.startswith("01_a.ipynb") and name[:20] in said and "maybe: float | None = None" in said
    assert len(said.partition("; allowed")[0]) < 300


@pytest.mark.parametrize("code", ["n: int =", "n = (", "n = '\0'", "n = " + "(" * 3000])
def test_parameters_that_are_no_python_are_refused(odd, code):
    nb = nbformat.read(odd, 4)
    nb.cells[1].source = code
    nbformat.write(nb, odd)
    with pytest.raises(BookError, match=r"01_a\.ipynb: its cell of parameters is no Python"):
        parameters.check(odd, {"n": "1"})


# -- profiles


@pytest.mark.parametrize("value", ["", "null", "0", "false", "[]", "''", "4", "n_seeds", "[n_seeds]"])
def test_a_chapter_without_a_mapping_is_refused(small, value):
    (small / "notebooks/profiles/smoke.yml").write_text(f"01_a: {{}}\n02_b: {value}\n")
    with pytest.raises(BookError, match=r"smoke\.yml must map chapters to parameters.*'02_b' has"):
        book.plan(small)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("smoke.yml is empty",)),
        ("[]", ("smoke.yml", "no mapping")),
        ("02_b: {n_seeds: 4}\n02_b: {rate: 1}", ("smoke.yml, line 2", "'02_b' stands twice")),
        ("02_b:\n  n_seeds: 4\n  n_seeds: 5", ("smoke.yml, line 3", "'n_seeds' stands twice")),
        ("02_b: {sources: &s [1]}", ("smoke.yml, line 1", "anchors")),
        ("02_b: {sources: !!set {1}}", ("smoke.yml, line 1", "tags")),
        ("02_b: {data: !!binary aGk=}", ("smoke.yml, line 1", "tags")),
        ("02_b: {n_seeds: '4'}", ("smoke.yml: 02_b.ipynb", "'n_seeds' must be int, got '4'")),
        ("02_b: {n_seeds: 4.0}", ("must be int, got 4.0",)),
        ("02_b: {n_seeds: }", ("must be int, got None",)),
        ("02_b: {n_seeds: 2020-01-01}", ("must be int, got '2020-01-01'",)),
        ("02_b: {rate: .nan}", ("must be float, got '.nan'",)),
        ("02_b: {rate: %s}" % ("9" * 401), ("must be float, got '999",)),
        ("02_b: {fast: yes}", ("must be bool, got 'yes'",)),
        ("02_b: {fast: 1}", ("must be bool, got 1",)),
        ("02_b: {data: no, rate: x}", ("must be float, got 'x'",)),
        ("02_b: {sources: [1, null]}", ("must be list[int], got [1, None]",)),
        ("02_b: {plain: {1: 2, a: 3}}", ("must be int, got {'1': 2, 'a': 3}",)),
        ("../notebooks/02_b: {}", ("smoke.yml names chapter '../notebooks/02_b'", "01_a, 02_b")),
        ("02_b.ipynb: {}", ("smoke.yml names chapter '02_b.ipynb'", "01_a, 02_b")),
        ("02: {}", ("smoke.yml names chapter '02'", "01_a, 02_b")),
        ("%s: {}" % ("k" * 500), ("smoke.yml names chapter 'kkk", "01_a, 02_b")),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_meant_is_refused(small, text, words):
    (small / "notebooks/profiles/smoke.yml").write_text(text)
    with pytest.raises(BookError) as error:
        book.plan(small)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert len(said) < 600


@pytest.mark.parametrize("name", ["", ".", "/", "..", "Smoke", "../profiles/smoke", "x" * 300, "\udcff"])
def test_a_profile_that_there_is_not_is_refused(small, name):
    with pytest.raises(BookError, match=r"no profile .*allowed are smoke, or a path"):
        book.plan(small, name)


@pytest.mark.parametrize("name", ["no.yml", "notebooks/profiles.yml", "x" * 300 + ".yml"])
def test_a_file_of_a_profile_that_cannot_be_read_is_named(small, name):
    with pytest.raises(BookError, match=f"{name} cannot be read"):
        book.plan(small, name)


@pytest.mark.parametrize(
    "only", ["", ".", "/", "./", ".ipynb", "..", "notebooks/", "*", "1", " 01", "01_A", "x" * 500]
)
def test_a_chapter_that_there_is_not_is_refused(small, only):
    with pytest.raises(BookError, match=r"no chapter .*chapters are 01_a, 02_b"):
        book.plan(small, only=["01", only])


@pytest.mark.parametrize("name", ["/", "/proc", "../..", "a/" * 3000, "x" * 300 + "/y", "x" * 5000])
def test_a_text_that_is_no_image_set_is_not_walked_through(small, name, monkeypatch):
    monkeypatch.setattr(type(small), "rglob", lambda *_: pytest.fail("walked through a folder of no images"))
    assert freshness.Keys(small).image_set(name) == freshness.Keys(small).image_set("none")


# -- notebooks


def damaged(chapter, **changes) -> None:
    nb = json.loads(chapter.read_text())
    for where, value in changes.items():
        *path, last = where.split("__")
        at = nb
        for step in path:
            at = at[int(step) if step.isdigit() else step]
        at[int(last) if last.isdigit() else last] = value
    chapter.write_text(json.dumps(nb))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata__redbook": 5}, "metadata.redbook = 5: a mapping is needed"),
        ({"metadata__redbook": None}, "metadata.redbook = None: a mapping is needed"),
        ({"metadata__redbook": [1]}, "metadata.redbook = [1]: a mapping is needed"),
        ({"metadata": 5}, "is not a notebook"),
        ({"cells": None}, "is not a notebook"),
        ({"cells__0": 5}, "is not a notebook"),
        ({"cells__1__metadata__tags": "parameters"}, "'parameters' is not of type 'array'"),
        ({"cells__1__metadata__tags": 5}, "5 is not of type 'array'"),
        ({"cells__1__source": 5}, "5 is not valid"),
        ({"cells__1__source": ["a", 5]}, "is not a notebook"),
        ({"cells__0__source": "half \ud800"}, "surrogates not allowed"),
        ({"cells__1__outputs": 5}, "is not a"),
        ({"nbformat": 5}, "version 5"),
        ({"nbformat": "4"}, "is not a notebook"),
    ],
    ids=str,
)
def test_a_damaged_notebook_is_refused_by_name(small, chapter, changes, words):
    damaged(chapter, **changes)
    with pytest.raises(BookError) as error:
        book.plan(small)
    assert "01_a.ipynb" in str(error.value) and words in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["", "null", "[]", "5", "{", "{}", "[" * 100_000, "\0", "# text"])
def test_what_is_no_notebook_is_refused_by_name(chapter, text):
    chapter.write_text(text)
    with pytest.raises(BookError, match=r"01_a\.ipynb is not a notebook"):
        notebooks.read(chapter)


def test_what_is_no_file_is_no_notebook_and_never_read(tmp_path):
    (tmp_path / "device.ipynb").symlink_to(os.devnull)
    for path, why in {
        tmp_path: "is not a notebook: it is no file",
        tmp_path / "device.ipynb": "is not a notebook: it is no file",
        tmp_path / "none.ipynb": "No such file",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        with pytest.raises(BookError, match=f"{path.name}.*{why}"):
            notebooks.read(path)


# -- redbook run


@pytest.fixture
def run(small, monkeypatch, capsys):
    """Exit status and message of `redbook run` on a chapter; nothing may run, and nothing be left."""
    monkeypatch.chdir(small)
    monkeypatch.setattr(book, "run_chapter", lambda *_, **__: pytest.fail("it ran"))

    def of(*options: str) -> tuple[int, str]:
        before = sorted(small.rglob("*"))
        code = cli.main(["run", "notebooks/01_a.ipynb", *options])
        assert sorted(small.rglob("*")) == before
        out, err = capsys.readouterr()
        assert not out and "Traceback" not in err and len(err) < 700
        return code, err

    return of


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "ends in .ipynb"),
        (".", "ends in .ipynb"),
        ("/", "ends in .ipynb"),
        ("notebooks", "ends in .ipynb"),
        ("_toc.yml", "ends in .ipynb"),
        ("/dev/null", "ends in .ipynb"),
        ("_toc.yml/x.ipynb", "no folder"),
        ("none/x.ipynb", "no folder"),
        ("/proc/x.ipynb", "/proc/x.ipynb"),
        ("x" * 300 + ".ipynb", "File name too long"),
        ("x" * 245 + ".ipynb", "File name too long"),  # it is not, but its partial file's would be
        ("of \udcff.ipynb", "a path in UTF-8 is needed"),
        ("folder.ipynb", "no plain file"),
        ("pipe.ipynb", "no plain file"),
        ("notebooks/01_a.ipynb", "it is read"),
        ("notebooks/02_b.ipynb", "it is read"),
        ("book/../notebooks/02_b.ipynb", "it is read"),
        ("soft.ipynb", "it is read"),
        ("hard.ipynb", "it is read"),
    ],
)
def test_a_place_that_cannot_take_the_result_is_refused_before_the_run(small, run, out, words):
    (small / "folder.ipynb").mkdir()
    os.mkfifo(small / "pipe.ipynb")
    (small / "soft.ipynb").symlink_to(small / "notebooks/02_b.ipynb")
    os.link(small / "notebooks/02_b.ipynb", small / "hard.ipynb")
    code, said = run("-o", out)
    assert code == 2 and said.startswith("redbook: --out '") and words in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_is_refused_before_the_run(small, run):
    (small / "closed").mkdir(mode=0o500)
    (small / "kept.ipynb").touch(mode=0o400)
    for out in ("closed/x.ipynb", "kept.ipynb"):
        code, said = run("-o", out)
        assert code == 2 and out in said and "Permission denied" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "n_seeds", "4", "-p", "n_seeds", "5"], "-p n_seeds: it stands twice"),
        (["-p", "n_seeds"], "-p n_seeds: give a name and a value"),
        (["-p", "=4"], "has no parameter ''"),
        (["-p", "n_seeds", ""], "'n_seeds' must be int, got ''"),
        (["-p", "data", "\udcff"], "'data' must be str"),
    ],
)
def test_pairs_that_cannot_be_meant_are_refused_before_the_run(run, options, words):
    code, said = run(*options)
    assert code == 2 and words in said


@pytest.mark.long
def test_a_path_in_braces_is_a_path(small, capsys):
    """To papermill it would be a text to fill in; and a notebook need not name a kernel."""
    damaged(small / "notebooks/01_a.ipynb", metadata={})
    out = small / "of {n_seeds} {nobody}.ipynb"
    code = cli.main(["run", str(small / "notebooks/01_a.ipynb"), "-p", "n_seeds", "5", "-o", str(out)])
    assert code == 0 and "n = 5" in capsys.readouterr().out and notebooks.glued(out)["n"] == 5
