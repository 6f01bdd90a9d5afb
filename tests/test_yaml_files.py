"""YAML as people write it: what a word means, and what is refused with its file and line."""

import math
import os

import pytest

from lib import yaml_files

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{a: 1, b: [2.5, 1e-3, .5, -7, 1_000, 010]}", {"a": 1, "b": [2.5, 1e-3, 0.5, -7, 1000, 10]}),
        ("[true, false, null, ~, None, ]", [True, False, None, None, None]),
        ("[yes, no, on, 1:30, 0x10, 2020-01-01, 1e999, .nan, =]", ["yes", "no", "on", "1:30", "0x10", "2020-01-01", "1e999", ".nan", "="]),
        ("[.inf, -.inf]", [math.inf, -math.inf]),
        ("['1', \"true\", '']", ["1", "true", ""]),
        ("1: x\n04: y\n1.0: z", {"1": "x", "04": "y", "1.0": "z"}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
        ("a: |\n  two\n  lines", {"a": "two\nlines"}),
        ("a: " + "9" * 400, {"a": "9" * 400}),
        ("", None),
    ],
)  # fmt: skip
def test_a_word_means_what_one_sees(text, want):
    found = yaml_files.parse(text)
    assert found == want and repr(found) == repr(want)  # 1 is not True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x [1]", "line 2: anchors"),
        ("a: *x", "line 1: anchors"),
        (BOMB, "line 1: anchors"),
        ("a: !!set {1}", "line 1: tags"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: tags"),
        ("a: !mine 1", "line 1: tags"),
        ("&a b: 1", "line 1: a key that is no plain text"),
        ("? [a]\n: 1", "line 1: a key that is no plain text"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' stands twice"),
        ("b: {a: 1, 'a': 3}", "line 1: 'a' stands twice"),
        ("a: 1\n---\na: 2", "line 2: a second document"),
        ("[" * 100_000, "line 1: lists and mappings more than 16 deep"),
        ("a:\n" + "".join(" " * i + "- \n" for i in range(1, 40)), "line 1[78]: lists and mappings more than 16 deep"),
        ("a: 1\n{", "line 2: not YAML"),
        ("a: [1", "line 1: not YAML"),
        ("a: 1\n\tb: 2", "line 2: not YAML"),
        ("a: 1\nb: \x01", "line 2: not YAML: special characters"),
        ('a: "\\0"', "line 1: .* holds a character that no text has"),
        ('a: "\\ud800"', "line 1: .* holds a character that no text has"),
        ('"\\ud800": 1', "line 1: a key that is no plain text"),
    ],
)  # fmt: skip
def test_what_says_other_than_one_sees_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        yaml_files.parse(text)
    (tmp_path / "f.yml").write_text(text)
    with pytest.raises(ValueError, match=r"f\.yml, line") as of_file:
        yaml_files.read_mapping(tmp_path / "f.yml")
    assert str(of_file.value).endswith(str(error.value)) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# a comment", "is empty"),
        (b"[1]", "holds no mapping"),
        (b"0", "holds no mapping"),
        (b"a: 1\nb: \xff", "line 2: not UTF-8"),
        ("a: 1".encode("utf-16"), "line 1: not UTF-8"),
        (b"#" * (1 << 20) + b"#", "more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_holds_no_mapping_is_named(tmp_path, content, message):
    class MyError(ValueError):
        pass

    (tmp_path / "f.yml").write_bytes(content)
    with pytest.raises(MyError, match=rf"f\.yml.*{message}"):
        yaml_files.read_mapping(tmp_path / "f.yml", error=MyError)


def test_what_is_no_file_is_named_and_never_read(tmp_path):
    (tmp_path / "device.yml").symlink_to(os.devnull)
    for path, why in {
        tmp_path: "is no file",
        tmp_path / "device.yml": "is no file",
        tmp_path / "none.yml": "cannot be read: No such file",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }.items():
        with pytest.raises(ValueError, match=rf"{path.name}.*{why}"):
            yaml_files.read_mapping(path)


def test_a_mark_of_utf_8_at_the_beginning_is_no_text(tmp_path):
    (tmp_path / "f.yml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert yaml_files.read_mapping(tmp_path / "f.yml") == {"a": 1}
