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
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from numbers import Real
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from . import yaml_files

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
        hints = _hints(type(self))  # type: ignore[arg-type]
        for f in fields(self):  # type: ignore[arg-type]
            value, what = getattr(self, f.name), f.metadata.get(KEY)
            if value is None and _optional(f):
                continue
            needed = _needed(f, hints[f.name])
            try:  # so that 3.0, or NumPy's 3, is 3 where it counts, and 1 is 1.0 where it may be 1.5
                fitted = _fitted(value, hints[f.name])
            except _Misfit as why:
                needed = needed.removesuffix(",") if str(why) else needed
                raise self.error(f"{f.name} = {shown(value)}: {needed}{why} is needed") from None
            if what is not None and not what.holds(fitted):
                raise self.error(f"{f.name} = {shown(value)}: {needed} is needed")
            object.__setattr__(self, f.name, fitted)


class _Misfit(ValueError):
    """A value of another type; the text is what to add to the words for its field."""


@lru_cache(maxsize=512)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


# What a tensor can hold: whole numbers of 64 bits, others of 32.
WHOLE_END, TINY, HUGE = 2**63, 1.1754943508222875e-38, 3.4028234663852886e38


def _fitted(value: Any, hint: Any) -> Any:
    """`value` in the type that a field is declared with: a whole number as int, a list as a tuple.

    Raises _Misfit for a value of another type. True is no number, and NaN is none.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        why = ""
        for one in inner:
            try:
                return _fitted(value, one)
            except _Misfit as error:
                why = why or str(error)
        raise _Misfit(why)
    if hint in (int, float):
        return _number(value, hint is int)
    if origin is tuple:
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, Set, Iterator)):
            raise _Misfit
        values = tuple(value)
        kinds = inner[:1] * len(values) if inner[1:] == (...,) else inner
        if len(values) != len(kinds):
            raise _Misfit
        return tuple(map(_fitted, values, kinds))
    kind = origin or hint
    fits = callable(value) if kind is Callable else not isinstance(kind, type) or isinstance(value, kind)
    if not fits:
        raise _Misfit
    return value


def _number(given: Any, whole: bool) -> int | float:
    if isinstance(given, bool) or not isinstance(given, Real) or given != given:
        raise _Misfit
    value: Any = given
    if whole:
        if value in (float("inf"), float("-inf")) or value % 1 != 0:
            raise _Misfit
        if not -WHOLE_END <= value < WHOLE_END:
            raise _Misfit(", below 2**63,")
        return int(value)
    try:
        size = abs(value := float(value))
    except OverflowError:  # a whole number of hundreds of digits
        size = 2 * HUGE
    if size and not TINY <= size <= HUGE and size != float("inf"):
        raise _Misfit(f", from {TINY:.2g} to {HUGE:.2g} in size,")
    return value


def _needed(f: Any, hint: Any) -> str:
    """What a field allows, in words, be it that its type alone says so."""
    return in_words(f) or _words(hint)


def _words(hint: Any, *, many: bool = False) -> str:
    """What a type is called: "a whole number", or of many "whole numbers"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(one, many=many) for one in inner)
    if origin is tuple:
        count = "" if inner[1:] == (...,) else f"{len(inner)} "
        return f"a list of {count}{_words(inner[0], many=True)}"
    names = {int: "whole number", float: "number", str: "text", dict: "mapping", Callable: "function"}
    if hint in (bool, type(None)):
        return "True or False" if hint is bool else "None"
    name: str = names.get(origin or hint) or getattr(hint, "__name__", "") or str(hint)
    return f"{name}s" if many else f"a{'n' * (name[0] in 'AEIOUaeiou')} {name}"


def _whole(f: Any) -> bool:
    return str(getattr(f.type, "__name__", f.type)).startswith("int")


def _optional(f: Any) -> bool:
    return f.default is None or "None" in str(f.type)


def in_words(f: Any) -> str:
    """What a dataclass field allows, as in "a number above 0 and up to 1"; empty where it does not say."""
    if KEY not in f.metadata:
        return ""
    words = f.metadata[KEY].in_words(_whole(f))
    return f"{words}, or None," if "None" in str(f.type) else words


def plain(settings: Any) -> dict[str, Any]:
    """Every setting of a dataclass as JSON-ready values: tuples as lists, anything else by its repr."""
    return {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # the repr of a function has its address
    return getattr(value, "__qualname__", None) or repr(value)


def shown(value: object) -> str:
    """A value as Python writes it, for a message: cut short where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = "a number too long to print"
    return text if len(text) <= 120 else f"{text[:100]} ..."


def check_names(
    kind: type,
    given: Iterable[str],
    *,
    name: str = "",
    word: str = "setting",
    error: type[ValueError] = ValueError,
) -> None:
    """Raise `error` for the first name that is no field of a dataclass; name: what to call that."""
    allowed_names = [f.name for f in fields(kind)]
    for key in given:
        if key not in allowed_names:
            none = f"{name} has no" if name else "no"
            raise error(f"{none} {word} {shown(key)}: allowed are {', '.join(allowed_names)}")


def from_text(kind: type, given: Mapping[str, str], *, name: str = "") -> dict[str, Any]:
    """Values of the settings of `kind` from text, each read as its field's type says.

    name: what to call `kind` in a message; default its class's name.
    Raises ValueError for a setting that there is not, or a text of another type.
    """
    name = name or kind.__name__
    check_names(kind, given, name=name)
    try:
        return _read_each(typed, kind, given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def from_values(
    kind: type, given: Mapping[str, Any], *, word: str = "setting", whole: bool = True
) -> dict[str, Any]:
    """The same from values as a file holds them, where the text "3" is no number; word: what to call a field.

    Raises ValueError also where one that has no default is not given, unless these are a few of them, not `whole`.
    """
    check_names(kind, given, word=word)
    hints = _hints(kind)
    for f in fields(kind) if whole else ():
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"no {f.name}: {_needed(f, hints[f.name])} is needed")
    return _read_each(of_type, kind, given)


def _read_each(read: Callable[[Any, Any], Any], kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    known, hints = {f.name: f for f in fields(kind)}, _hints(kind)
    values = {}
    for key, value in given.items():
        try:
            values[key] = read(value, hints[key])
        except ValueError:
            raise ValueError(f"{key} = {shown(value)}: {_needed(known[key], hints[key])} is needed") from None
    return values


def typed(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; text is read as YAML, and "1, 2" as a list where one is wanted.

    Raises ValueError where it cannot be.
    """
    if hint is bool and value in ("1", "0"):
        return value == "1"
    for attempt in _readings(value, hint):
        with suppress(ValueError):
            return of_type(attempt, hint)
    raise ValueError(f"{shown(value)}: a value of type {type_name(hint)} is needed")


def of_type(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, where it is one that JSON can hold.

    Types are taken strictly: a whole number may stand for a float, a list for a tuple, nothing else for anything else.
    Raises ValueError where it cannot be.
    """
    from pydantic import ConfigDict, TypeAdapter

    try:
        text = json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
        if hint is Any:
            return value
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_json(
            text, strict=True
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _readings(value: Any, hint: Any) -> Iterator[Any]:
    """What a text may mean, likeliest first; anything else means itself."""
    if not isinstance(value, str) or hint is str:
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


def _read(text: str) -> Any:
    """A text as YAML, else the text itself."""
    if text in ("inf", "-inf"):
        return float(text)
    with suppress(ValueError):
        value = yaml_files.parse(text)
        return text if value is None and text not in yaml_files.WORDS else value  # a comment is text here
    return text


def type_name(hint: Any) -> str:
    """A type as one writes it: "int", "list[int]", "float | tuple[float, float]"."""
    plain = isinstance(hint, type) and not hasattr(hint, "__args__")
    return hint.__name__ if plain else str(hint).replace("typing.", "")
