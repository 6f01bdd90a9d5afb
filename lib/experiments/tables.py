"""Reading a sweep's table: right verdicts, rates with their denominators, paired comparisons.

A rule is any of `anomaly.RULES`, or PAPER: the Gamma test as the L-RED papers put it, over all pairs for the method
that solves a problem for each pair, over the classes for all others.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import metrics

if TYPE_CHECKING:
    import pandas as pd

PAPER = "paper"


def verdicts(table: pd.DataFrame, rule: str, what: str = "case") -> pd.Series:
    """What a rule said of every row: `case` (I to IV of B3D), `flags` (classes), or `score`.

    Empty where the rule could not judge.
    """
    if rule != PAPER:
        return table[f"{rule.replace('-', '_')}_{what}"]
    return verdicts(table, "gamma-pairs", what).where(_of_pairs(table), verdicts(table, "gamma", what))


def _of_pairs(table: pd.DataFrame) -> pd.Series:
    return (table["detector"] == "p-red") & table["gamma_pairs_case"].notna()


def right(table: pd.DataFrame, rule: str = PAPER) -> pd.Series:
    """Was each row's verdict right? Attacked: the target alone (Case I); clean: nothing flagged (Case IV)."""
    case = verdicts(table, rule)
    return (case == "I").where(table["target"].notna(), case == "IV")


def methods(table: pd.DataFrame) -> pd.Series:
    """The RED family by the paper's names: with two clean images per class L-RED is L-RED'."""
    prime = (table["detector"] == "l-red") & (table["n"] == 2)
    return table["detector"].str.upper().mask(prime, "L-RED'")


def detection_rates(table: pd.DataFrame, rule: str = PAPER) -> dict[str, dict[str, metrics.Rate]]:
    """group -> method (see `methods`) -> share of right verdicts, with denominators."""
    judged = table.assign(right=right(table, rule), method=methods(table))
    return {
        str(group): {
            str(m): metrics.rate(rows["right"].tolist()) for m, rows in block.groupby("method", sort=False)
        }
        for group, block in judged.groupby("group", sort=False)
    }


def standing(table: pd.DataFrame) -> pd.Series:
    """The target's norm over the median of the other classes': 1 is nothing special. NaN on clean classifiers."""

    def of_row(norms: np.ndarray, target: float) -> float:
        if np.isnan(target):
            return float("nan")
        return float(norms[int(target)] / np.median(np.delete(norms, int(target))))

    import pandas as pd

    found = [of_row(np.asarray(n), float(t)) for n, t in zip(table["norms"], table["target"], strict=True)]
    return pd.Series(found, index=table.index)


def paired(table: pd.DataFrame, settings: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Classifiers scanned with these settings, and the same with the defaults, aligned row by row."""
    have = table["settings"].map(lambda text: settings.items() <= json.loads(text).items())
    index = ["dataset", "group", "seed"]
    chosen, default = (
        t.set_index(index).sort_index() for t in (table[have], table[table["settings"] == "{}"])
    )
    both = chosen.index.intersection(default.index)
    return chosen.loc[both].reset_index(), default.loc[both].reset_index()


def works(table: pd.DataFrame) -> pd.Series:
    """Does each attack work? ASR of 0.9 or more, and CTA within 2 points of the clean classifier's."""
    return (table["asr"] >= 0.9) & (table["cta"] >= table["clean_cta"] - 0.02)


def attack_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per image set and attack of a table of attacks.

    Means over the seeds, the lowest ASR, and how many classifiers meet both marks of `works`.
    """
    return (
        table.assign(works=works(table))
        .groupby(["dataset", "attack"], sort=False)
        .agg(
            asr=("asr", "mean"),
            lowest=("asr", "min"),
            cta=("cta", "mean"),
            clean=("clean_cta", "mean"),
            collateral=("collateral", "mean"),
            cross=("cross_trigger", "mean"),
            norm=("norm", "mean"),
            works=("works", "sum"),
            classifiers=("works", "size"),
        )
    )
