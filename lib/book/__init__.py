"""The book: its chapters are notebooks, run where they are not fresh; pages are made of them.

    book.make(book.find_root(), profile="smoke")

Nothing here imports torch, so a build in which all is fresh takes seconds. `notebooks` reads them,
`freshness` says which to run, `runner` runs several at once, each in a `kernel`, and `jupyter_book` makes pages of
them.
"""

from .build import Refuted, Summary, Trial, Tried, contents, find_root, make, plan, run_chapter, try_seeds
from .notebooks import BookError
from .progress import Bars
from .runner import Chapter, Failure, Progress

__all__ = [
    "Bars",
    "BookError",
    "Chapter",
    "Failure",
    "Progress",
    "Refuted",
    "Summary",
    "Trial",
    "Tried",
    "contents",
    "find_root",
    "make",
    "plan",
    "run_chapter",
    "try_seeds",
]
