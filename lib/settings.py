"""Settings: a frozen dataclass whose fields say, beside their default, what is allowed.

    @dataclass(frozen=True, kw_only=True)
    class Walk(Settings):
        theta: float = number(0.6, above=0, below=1)  # share of images that must arrive
        passes: int = number(5, least=1)
        norm: str = choice("l2", ("l2", "linf"))

What is declared there is checked when an object is made, said in the message when a value is refused, used to
read a value from text (`redbook scan -p`, a chapter's parameters), and printed in the book's table of settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, get_type_hints

KEY = "allowed"  # where a field's metadata holds what it allows


@dataclass(frozen=True)
class Interval:
    """Numbers between two bounds; whole ones alone where the field's type is int.

    Infinity is a number only where `high` is infinite and not open.
    """

    low: float = float("-inf")
    high: float = float("inf")
    low_open: bool = True
    high_open: bool = True

    def holds(self, value: object) -> bool:
        """Is it a number (NaN is none, nor is True) within the bounds?"""
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        value = value if isinstance(value, (int, float)) else float(value)
        above = value > self.low if self.low_open else value >= self.low
        return bool(above and (value < self.high if self.high_open else value <= self.high))

    def in_words(self, whole: bool) -> str:
        """Such as "a number above 0 and up to 1"."""
        said = []
        if self.low != float("-inf"):
            said.append(f"above {self.low:g}" if self.low_open else f"from {self.low:g}")
        if self.high != float("inf"):
            said.append(f"below {self.high:g}" if self.high_open else f"up to {self.high:g}")
        elif self.high_open and not whole:
            said.append("finite")
        return " ".join(["a whole number" if whole else "a number", " and ".join(said)]).strip()


@dataclass(frozen=True)
class Allowed:
    """What neither an interval nor a list of words can say: a test, and the words for it."""

    test: Callable[[Any], bool]
    words: str

    def holds(self, value: object) -> bool:
        """Does it pass the test?"""
        return self.test(value)

    def in_words(self, whole: bool) -> str:
        """Such as "a multiple of 4"."""
        return self.words


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def holds(self, value: object) -> bool:
        """Is it one of the words?"""
        return isinstance(value, str) and value in self.words

    def in_words(self, whole: bool) -> str:
        """Such as "all, pairs or halving"."""
        return " or ".join(filter(None, (", ".join(self.words[:-1]), self.words[-1])))


def number(
    default: Any = MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field for a number: >= least or > above, <= most or < below; finite unless `most` is infinity.

    default: None where None is a value of its own; left out, the field must be given.
    """
    low = least if above is None else above
    high = most if below is None else below
    interval = Interval(
        float("-inf") if low is None else low,
        float("inf") if high is None else high,
        least is None,
        most is None,
    )
    return field(default=default, metadata={KEY: interval})


def share(default: Any = MISSING) -> Any:
    """A field for a share above 0 and up to 1."""
    return number(default, above=0, most=1)


def choice(default: Any, words: Sequence[str]) -> Any:
    """A field for one of a few words."""
    return field(default=default, metadata={KEY: OneOf(tuple(words))})


def allowed(default: Any, what: Allowed) -> Any:
    """A field for whatever passes a test."""
    return field(default=default, metadata={KEY: what})


def are_numbers(values: object, count: int, **bounds: float) -> bool:
    """Are these so many numbers, each within the bounds that `number` takes?"""
    interval = number(**bounds).metadata[KEY]
    return isinstance(values, (list, tuple)) and len(values) == count and all(map(interval.holds, values))


class Settings:
    """Base of frozen dataclasses of settings: refuses, when made, what a field does not allow.

    A rule between fields goes into the subclass's `__post_init__`, after `super().__post_init__()`.
    Raises `error`, a ValueError, naming the setting, the value and what is allowed.
    """

    error: ClassVar[type[ValueError]] = ValueError

    def __post_init__(self) -> None:
        for f, allowed, whole in _declared(type(self)):
            value: Any = getattr(self, f.name)
            if value is None and _optional(f):
                continue
            if not allowed.holds(value) or (whole and isinstance(value, Real) and value % 1 != 0):
                raise self.error(f"{f.name} = {value!r}: {in_words(f)} is needed")
            if isinstance(value, Real):  # so that 3.0, or NumPy's 3, is 3, and 1 is 1.0 where it may be 1.5
                object.__setattr__(self, f.name, _number(value, whole))
        for f in fields(self):  # type: ignore[arg-type]
            if f.type in ("bool", bool) and not isinstance(getattr(self, f.name), bool):
                raise self.error(f"{f.name} = {getattr(self, f.name)!r}: True or False is needed")


def _declared(kind: type) -> Iterator[tuple[Any, Any, bool]]:
    for f in fields(kind):
        if KEY in f.metadata:
            yield f, f.metadata[KEY], _whole(f)


def _number(value: Any, whole: bool) -> int | float:
    return int(value) if whole else float(value)


def _whole(f: Any) -> bool:
    return str(getattr(f.type, "__name__", f.type)).startswith("int")


def _optional(f: Any) -> bool:
    return f.default is None or "None" in str(f.type)


def in_words(f: Any) -> str:
    """What a dataclass field allows, as in "a number above 0 and up to 1"; empty where it does not say."""
    if KEY not in f.metadata:
        return ""
    words = f.metadata[KEY].in_words(_whole(f))
    return f"{words}, or None," if _optional(f) else words


def plain(settings: Any) -> dict[str, Any]:
    """Every setting of a dataclass as JSON-ready values: tuples as lists, anything else by its repr."""
    return {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def check_names(
    kind: type,
    given: Iterable[str],
    *,
    name: str,
    word: str = "setting",
    error: type[ValueError] = ValueError,
) -> None:
    """Raise `error` for the first name that is no field of a dataclass; name: what to call that."""
    allowed_names = [f.name for f in fields(kind)]
    for key in given:
        if key not in allowed_names:
            raise error(f"{name} has no {word} {key!r}: allowed are {', '.join(allowed_names)}")


def from_text(kind: type, given: dict[str, str], *, name: str = "") -> dict[str, Any]:
    """Values of the settings of `kind` from text, each read as its field's type says.

    name: what to call `kind` in a message; default its class's name.
    Raises ValueError for a setting that there is not, or a text of another type.
    """
    name, known = name or kind.__name__, {f.name: f for f in fields(kind)}
    check_names(kind, given, name=name)
    hints = get_type_hints(kind)
    values = {}
    for key, text in given.items():
        try:
            values[key] = typed(text, hints[key])
        except ValueError:
            wanted = in_words(known[key]) or f"a value of type {type_name(hints[key])}"
            raise ValueError(f"{name}: {key} = {text!r}: {wanted} is needed") from None
    return values


def typed(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; text is read as JSON or YAML, and "1, 2" as a list where one is wanted.

    Types are taken strictly: a whole number may stand for a float, nothing else for anything else.
    Raises ValueError where it cannot be.
    """
    from pydantic import ConfigDict, TypeAdapter

    if hint is Any or (hint is str and isinstance(value, str)):
        return _read(value) if hint is Any else value
    if hint is bool and value in ("1", "0"):
        return value == "1"
    adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    seen: Exception | None = None
    try:
        for attempt in _readings(value):
            try:
                return adapter.validate_json(json.dumps(attempt), strict=True)
            except (ValueError, TypeError) as error:
                seen = error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    raise ValueError(str(seen))


def _readings(value: Any) -> Iterator[Any]:
    """What a text may mean, likeliest first."""
    if not isinstance(value, str):
        yield value
        return
    text = value.strip()
    yield _read(text)
    if not text.startswith(("[", "{")):
        bare = text[1:-1] if text.startswith("(") and text.endswith(")") else text
        *parts, last = [part.strip() for part in bare.split(",")]
        parts += [last] if last else []  # a comma may stand at the end
        if all(parts):
            yield [_read(part) for part in parts]
            yield parts
    yield value


def _read(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    import yaml

    if text.strip().lower() in ("inf", "-inf"):
        return float(text)
    for read in (int, json.loads):
        with suppress(ValueError):
            return read(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    # To YAML, 1:30 and 0x10, too, are numbers; here they are typos.
    if type(value) in (int, float):
        with suppress(ValueError):
            return float(text)
        return text
    return value


def type_name(hint: Any) -> str:
    """A type as one writes it: "int", "list[int]", "float | tuple[float, float]"."""
    return hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
