"""Reading a sweep's table: right verdicts, rates with their denominators, paired comparisons."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import metrics

if TYPE_CHECKING:
    import pandas as pd


def successes(table: pd.DataFrame, rule: str = "gamma") -> pd.Series:
    """Was each row's verdict right? Attacked: flagged with the target alone (Case I); clean:
    nothing flagged (Case IV).
    """
    case = table[f"{rule.replace('-', '_')}_case"]
    return (case == "I").where(table["target"].notna(), case == "IV")


def methods(table: pd.DataFrame) -> pd.Series:
    """The RED family by the paper's names: with two clean images per class L-RED is L-RED'."""
    prime = (table["detector"] == "l-red") & (table["n"] == 2)
    return table["detector"].str.upper().mask(prime, "L-RED'")


def detection_rates(table: pd.DataFrame, rule: str = "gamma") -> dict[str, dict[str, metrics.Rate]]:
    """group -> method (see `methods`) -> share of right verdicts, with denominators."""
    right = table.assign(right=successes(table, rule), method=methods(table))
    return {
        str(group): {
            str(m): metrics.rate(rows["right"].tolist()) for m, rows in block.groupby("method", sort=False)
        }
        for group, block in right.groupby("group", sort=False)
    }


def paired(table: pd.DataFrame, settings: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables aligned row by row: classifiers scanned with these settings,
    and the same ones scanned with the defaults.
    """
    have = table["settings"].map(lambda text: settings.items() <= json.loads(text).items())
    index = ["dataset", "group", "seed"]
    chosen, default = (
        t.set_index(index).sort_index() for t in (table[have], table[table["settings"] == "{}"])
    )
    both = chosen.index.intersection(default.index)
    return chosen.loc[both].reset_index(), default.loc[both].reset_index()
