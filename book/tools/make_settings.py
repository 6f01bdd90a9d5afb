"""Writes book/settings.md: every setting of every attack, detector, mitigation and recipe, with what it may be.

    python book/tools/make_settings.py

The table is made from the dataclasses, so it says what is checked; a test says that the page is of today's code.
"""

import re
import sys
from dataclasses import MISSING, fields
from inspect import getdoc, getsourcelines
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lib import attacks, detectors, mitigations, train  # noqa: E402
from lib.settings import in_words  # noqa: E402

KEYS, BAR = "__dataclass_fields__", r"\|"
PAGE = ROOT / "book" / "settings.md"
HEAD = """# Settings

Every setting, its default, and what it may be. A detector's can be set on the command line,
`redbook scan NAME --detector l-red -p stride 0.1,0.02`; all of them are arguments in Python. A value that is not
allowed is refused by name before anything runs. This page is made from the code by `book/tools/make_settings.py`.
"""


def comments(kind: type) -> dict[str, str]:
    """What a class says of each of its fields: beside it, or in a line of its docstring."""
    names, (lines, _) = {f.name for f in fields(kind)}, getsourcelines(kind)
    found = {}
    for line in lines:
        name = line.strip().split(":")[0]
        if name in names and "  # " in line:
            found[name] = line.rsplit("  # ", 1)[1]
    # "name: what it is", with its further lines indented
    for name, text in re.findall(r"^(\w+): (.*(?:\n {4}.*)*)", getdoc(kind) or "", re.MULTILINE):
        if name in names:
            found[name] = text
    return {name: " ".join(text.split()).rstrip(".") for name, text in found.items()}


def section(title: str, kind: type) -> str:
    said = {k: v for c in reversed(kind.__mro__) if hasattr(c, KEYS) for k, v in comments(c).items()}
    rows = [
        f"| `{f.name}` | {default(f)} | {in_words(f).removesuffix(',') or words(f.type)} "
        f"| {said.get(f.name, '').replace('|', BAR)} |"
        for f in fields(kind)
        if f.init
    ]
    first = (getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return "\n".join(
        [f"### {title}", "", first, "", "| setting | default | may be | |", "|---|---|---|---|", *rows]
    )


def default(f) -> str:
    made = f.default_factory() if f.default_factory is not MISSING else f.default
    if made is MISSING:
        return "given"
    return f"`{type(made).__name__}()`" if hasattr(made, KEYS) else f"`{made}`"


def words(kind: object) -> str:
    return f"`{str(getattr(kind, '__name__', kind)).replace('|', BAR)}`"


def kinds(room) -> dict[str, type]:
    found = {name: getattr(room, name) for name in room.__all__}
    return {
        n: k for n, k in found.items() if isinstance(k, type) and hasattr(k, KEYS) and hasattr(k, "error")
    }


def page() -> str:
    abstract = {"Attack", "SingleAttack", "Additive"}
    rooms = {
        "Detectors": {f"{n} ({k.__name__})": k for n, k in detectors.DETECTORS.items()},
        "Attacks": {n: k for n, k in kinds(attacks).items() if n not in abstract},
        "Mitigations": kinds(mitigations),
        "Training": {"Recipe": train.Recipe},
    }
    parts = [HEAD]
    for title, room in rooms.items():
        parts += [f"## {title}", *(section(name, kind) for name, kind in room.items())]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)} written")
