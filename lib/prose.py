"""Numbers on their way into a chapter's text: how they are written, and how they get there.

    glue(asr=percent(0.973), right=of([True, True, False]))  # "97.3 %", "2 of 3"
    glue.table(rates, "{row}_{column}", form=of)
    claim(shorter=norms[target] < norms.median() / 2)

The text then says {glue:text}`asr`, and behind a sentence that reads something off an output stands {claim}`shorter`:
nothing on the page while it holds, a visible mark where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Glue:
    """Makes values available to a chapter's roles {glue:text}`name`; shows nothing in the cell."""

    def __call__(self, **values: object) -> None:
        """Glue each value under its name; a NumPy scalar as a plain number, without its type."""
        import numpy as np  # not above: the build reads claims, and needs neither
        from myst_nb import glue as glue_one

        for name, value in values.items():
            glue_one(name, value.item() if isinstance(value, np.generic) else value, display=False)

    def table(self, table: Any, pattern: str, *, form: Callable[[Any], object] = str) -> None:
        """Glue every cell of a table under a name that the pattern makes of its row and its column.

            glue.table(frame, "{group}_{column}", form=percent)

        table: a DataFrame or Series, or a nested mapping {row: {column: value}}.
        pattern: with {row} and {column}, and of a DataFrame the names of its index's levels, as for str.format.
        form: how a cell is written.
        Raises ValueError where the pattern asks for another name, or gives two cells the same one.
        """
        named: dict[str, object] = {}
        for where, value in _cells(table):
            try:
                name = pattern.format(**where)
            except KeyError as error:
                raise ValueError(
                    f"pattern {pattern!r} asks for {error}: allowed are {', '.join(where)}"
                ) from None
            if name in named:
                raise ValueError(f"pattern {pattern!r} gives two cells the name {name!r}")
            named[name] = form(value)
        self(**named)


glue = Glue()

# what the name of a glued claim begins with, and its basis
CLAIM = {"claim:run:": "run", "claim:rows:": "rows"}


class Claims:
    """Ties sentences to outputs: claim(name=holds), and {claim}`name` behind the sentence; shows nothing in the cell."""

    def __call__(self, **holds: object) -> None:
        """What this very run shows: another seed may show something else.

        holds: for each claim, whether it does: True or False, or a NumPy or PyTorch scalar of that kind.
        Raises ValueError for anything else.
        """
        self._make("claim:run:", holds)

    def of_rows(self, **holds: object) -> None:
        """What a committed table shows, whatever the seed of this run. As above."""
        self._make("claim:rows:", holds)

    def _make(self, prefix: str, holds: Mapping[str, object]) -> None:
        for name, value in holds.items():
            plain = value.item() if getattr(value, "shape", None) == () else value  # type: ignore[attr-defined]
            if not isinstance(plain, bool):
                raise ValueError(f"claim {name} = {value!r}: True or False is needed")
            glue(**{prefix + name: plain})


claim = Claims()


def _cells(table: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """What each cell of a table can be called by, and its value."""
    if isinstance(table, Mapping):
        for row, columns in table.items():
            for column, value in columns.items():
                yield {"row": row, "column": column}, value
        return
    frame = table.to_frame() if hasattr(table, "to_frame") else table
    for column, values in frame.items():
        for row, value in values.items():
            levels = {**_levels(frame.columns, column), **_levels(frame.index, row)}
            yield {"row": row, "column": column, **levels}, value


def _levels(index: Any, label: Any) -> dict[str, Any]:
    """The parts of a label by the names of the levels of its pandas index, as far as they have one."""
    parts = label if index.nlevels > 1 else (label,)
    return {name: part for name, part in zip(index.names, parts) if isinstance(name, str)}


def percent(x: Any, digits: int = 1) -> str:
    """A share as per cent, such as "97.3 %"; zero has no sign.

    x: a number, a tensor of one, a Rate: whatever float() takes.
    """
    return f"{100 * float(x):z.{digits}f} %"


def of(found: Any, *, sep: str = " of ") -> str:
    """How many of how many, such as "9 of 10", or with sep="/" "9/10".

    found: flags, each true or false, or anything with a count and a total, such as a Rate.
    Raises ValueError for anything else.
    """
    if hasattr(found, "total"):  # tuples and lists, too, have a count
        return f"{found.count}{sep}{found.total}"
    flags = list(found) if isinstance(found, Iterable) and not isinstance(found, str) else [None]
    if not all(flag in (True, False) for flag in flags):
        raise ValueError(f"{found!r}: flags, or a count and a total, are needed")
    return f"{sum(map(bool, flags))}{sep}{len(flags)}"


def p(log_p: float) -> str:
    """exp(log_p) in two digits, also where it underflows: "0.031", "8.5e-9", "1.2e-412".

    The explorers write p-values in the same way: `formatP` of widgets/maths.js.
    """
    if math.isinf(log_p) or math.isnan(log_p):
        return "0" if log_p < 0 else "not defined"
    ten = log_p / math.log(10)
    if ten > -3:
        return _two_digits(math.exp(log_p))
    power = math.floor(ten)
    lead = 10 ** (ten - power)
    if lead >= 9.95:
        lead, power = 1.0, power + 1
    return f"{lead:.1f}e{power}"


def _two_digits(x: float) -> str:
    """Two significant digits, trailing zeros kept, as JavaScript writes x in [1e-3, 1]."""
    return f"{x:#.2g}".rstrip(".")
