"""YAML that people write by hand, read strictly: grids, profiles, and values on the command line.

Lists, mappings and words; a word is a number, true, false, null or text as YAML 1.2 has it, so that `no` and `1:30`
are text and 1e-3 is a number. What makes a file say other things than one sees in it is refused: anchors and aliases,
tags, a key that stands twice, a second document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 1 << 20  # bytes of a file
DEEPEST = 16  # lists and mappings inside each other
LONGEST = 300  # characters of a number: any such whole number is finite as a float, too

WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL", "None"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    ".inf": math.inf,
    "-.inf": -math.inf,
}
WHOLE = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_mapping(path: str | Path, *, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises `error`, naming the file and the line, for a file that cannot be read, is no UTF-8, or holds anything else.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path} is no file")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    if len(raw) > LARGEST:
        raise error(f"{path} has more than {LARGEST:,} bytes: no YAML written by hand")
    try:
        value = parse(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}, line {line}: not UTF-8") from None
    except ValueError as problem:
        raise error(f"{path}, {problem}") from None
    if not isinstance(value, dict):
        raise error(f"{path} is empty or holds no mapping: `name: value` is needed")
    return value


def parse(text: str) -> Any:
    """The value that a YAML text holds: None, bool, int, float, str, or lists and mappings of them.

    Raises ValueError, naming the line, where there is no such value.
    """
    import yaml

    events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        next(events)  # the stream begins
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        value = _value(events, next(events), DEEPEST)
        next(events)  # the document ends
        if not isinstance(after := next(events), yaml.StreamEndEvent):
            raise _refused(after, "a second document: one is needed")
        return value
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        raise ValueError(f"line {mark.line + 1}: not YAML: {str(problem.problem)[:200]}") from None
    except yaml.reader.ReaderError as problem:  # knows no line
        line = text.count("\n", 0, problem.position) + 1
        raise ValueError(f"line {line}: not YAML: {problem.reason}") from None


def word(text: str) -> Any:
    """What a word without quotes means: None, a truth value, a number, else the text itself."""
    if text in WORDS:
        return WORDS[text]
    if len(text) <= LONGEST and WHOLE.fullmatch(text):
        return int(text)
    if len(text) <= LONGEST and DECIMAL.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return text


def _value(events: Iterator[Any], event: Any, depth: int) -> Any:
    """The value that begins with `event`, in which lists and mappings may be `depth` deep."""
    import yaml

    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise _refused(event, "anchors and aliases (& and *) are not read: write it out")
    if event.tag:
        raise _refused(event, f"tags ({event.tag[:40]}) are not read: plain values alone")
    if isinstance(event, yaml.ScalarEvent):
        if NO_CHARACTER.search(event.value):
            raise _refused(event, f"{event.value[:40]!r} holds a character that no text has")
        return event.value if event.style else word(event.value)
    if not depth:
        raise _refused(event, f"lists and mappings more than {DEEPEST} deep")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_value(events, item, depth - 1))
        return items
    found: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor or key.tag or NO_CHARACTER.search(key.value):
            raise _refused(key, "a key that is no plain text")
        if key.value in found:
            raise _refused(key, f"{key.value[:40]!r} stands twice")
        found[key.value] = _value(events, next(events), depth - 1)
    return found


def _refused(event: Any, why: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {why}")
